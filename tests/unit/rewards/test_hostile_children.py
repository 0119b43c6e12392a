"""Scoring processes that run an enemy's code: their owner runs nothing of theirs, keeps its memory, and is
not kept waiting; and they see no variable that nobody gave them."""

import itertools
import os
import pickle

import pytest

from hybridrl.errors import ConfigError, DeadlineError, RewardError, UserCodeError, WorkerError
from hybridrl.rewards import answers, pool
from hybridrl.rewards.processes import parent_of, sealed_memory
from hybridrl.rewards.score import Score
from hybridrl.sandbox.inside.frames import Frame, FrameError, pack

HEAD = """
import os, socket, stat, struct, sys, time

def sockets():
    found = []
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            pass
    return found

def progress():
    frame = sys._getframe()
    while 'progress' not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals['progress']

"""


@pytest.fixture
def enemy(scorer, module):
    """A scorer whose reward runs code for the answer "evil", and else returns 1."""

    def make(code, **options):
        lines = "\n".join("        " + line for line in code.splitlines())
        name = module(f"{HEAD}def f(answer, row):\n    if answer == 'evil':\n{lines}\n    return 1.0\n")
        return scorer(f"{name}:f", **options)

    return make


class Bomb:
    """What would run in the owner if it unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the owner ran code of the enemy')",)


NONSENSE = {
    "pickle": pickle.dumps(Bomb()) + b" " * 16,
    "pickle in a frame": pack({"kind": "results"}, pickle.dumps(Bomb())),
    "too large": b"\x00\x00\x00\x02\xff\xff\xff\xff{}",
    "large text": b"\x7f\xff\xff\xff\x00\x00\x00\x00",
    "no number": pack({"kind": "results"}, b'["1.0", {}]\n'),
    "not finite": pack({"kind": "results"}, b"[1e999, {}]\n"),
    "too many": pack({"kind": "results"}, b"[1.0, {}]\n" * 3),
    "nested": pack({"kind": "results"}, b"[" * 100_000 + b"\n"),
    "class": pack({"kind": "error"}, b'["BaseException", "a", "b", "c"]\n'),
    "other kind": pack({"kind": "loaded"}, b"[1.0, {}]\n"),
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_bytes_that_are_no_answer_are_refused_and_the_next_job_is_served(enemy, sent):
    one = enemy(f"for fd in sockets(): os.write(fd, {sent!r})\ntime.sleep(1000)", timeout_s=50)
    with pytest.raises(RewardError, match="answered nonsense"):
        one.score(["evil"], [{}], ["a"])
    assert one.score(["good"], [{}], ["a"]) == [Score(1.0, {})]


HALF = "bytes([0, 0, 15, 255, 0, 255, 0, 0])"
"""The head of a large frame; sent again, it is a part of the frame."""


@pytest.mark.parametrize(
    "claim",
    ["0; p._words[1] = 2**62", "-1", "99", "-99", f"0\n    os.write(sockets()[0], {HALF})"],
    ids=["in the future", "not begun", "beyond", "below", "half an answer"],
)
def test_a_process_that_lies_about_its_progress_is_ended_by_the_owners_clock(enemy, claim, monkeypatch):
    monkeypatch.setattr(pool, "_LATE_S", 0.5)
    monkeypatch.setattr(pool, "_BEGIN_S", 0.5)
    one = enemy(
        f"p = progress()\nwhile True:\n    p._words[0] = {claim}\n    time.sleep(0.01)", timeout_s=0.3
    )
    with pytest.raises(DeadlineError, match="did not return for a within 0.3 s"):
        one.score(["evil"], [{}], ["a"])
    assert one.score(["good"], [{}], ["a"]) == [Score(1.0, {})]


def test_shared_memory_cannot_be_cut_under_the_owner(enemy):
    one = enemy("os.ftruncate(progress().fd, 0)")
    with pytest.raises(RewardError, match="raised PermissionError"):
        one.score(["evil"], [{}], ["a"])
    assert one.score(["good"], [{}], ["a"]) == [Score(1.0, {})]


def test_sealed_memory_keeps_its_size():
    fd = sealed_memory("x", 4096)
    for size in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    os.close(fd)


def test_a_fork_server_that_names_another_process_is_refused(scorer, module):
    name = module("""
        import hybridrl.rewards.children as children
        children.pid_frame = lambda pid, old=children.pid_frame: old(1)
        def f(answer, row): return 1.0
    """)
    with pytest.raises(WorkerError, match="names a process that is not its own"):
        scorer(f"{name}:f")


def test_a_process_sees_the_base_and_what_is_listed_alone(enemy, module, scorer, monkeypatch):
    monkeypatch.setenv("LAB_SECRET", "secret")
    monkeypatch.setenv("LAB_KEY", "key")
    name = module(
        "import os\ndef f(answer, row): return {'reward': 1, **{n: 1 for n in os.environ if n != 'LC_CTYPE'}}"
    )
    [score] = scorer(f"{name}:f", variables=("LAB_KEY",)).score(["x"], [{}], ["a"])
    assert "LAB_KEY" in score.parts and "PATH" in score.parts and "LAB_SECRET" not in score.parts


def test_a_variable_that_is_missed_is_named_with_the_change(scorer, module, monkeypatch):
    monkeypatch.setenv("LAB_KEY", "key")
    monkeypatch.setenv("LAB_OTHER", "other")
    name = module("import os\ndef f(answer, row): return len(os.environ['LAB_KEY'])")
    with pytest.raises(RewardError, match="KeyError") as refused:
        scorer(f"{name}:f", variables=("LAB_OTHER",)).score(["x"], [{}], ["a"])
    assert refused.value.fix == "list it: reward.variables: [LAB_OTHER, LAB_KEY]"
    while_loading = module("import os\nkey = os.environ['LAB_KEY']\ndef f(answer, row): return len(key)")
    with pytest.raises(UserCodeError, match="raises KeyError: 'LAB_KEY'") as refused:
        scorer(f"{while_loading}:f")
    assert "reward.variables: [LAB_KEY]" in refused.value.fix
    assert scorer(f"{while_loading}:f", variables=("LAB_KEY",)).score(["x"], [{}], ["a"]) == [Score(3.0, {})]


def test_a_variable_that_is_not_set_is_refused_with_both(scorer):
    with pytest.raises(ConfigError, match="reward.variables lists LAB_ABSENT, which is not set") as refused:
        scorer("exact_match", variables=("LAB_ABSENT",))
    assert refused.value.fix == "export LAB_ABSENT, or take it out of reward.variables"


def test_answers_come_out_as_they_went_in():
    results = [Score(0.1 + 0.2, {"a": -1e300, "é": 3.0}), None, "gold \ud800 \n text", Score(1.0, {})]
    [frame] = answers.reader().feed(answers.results_frame(results))
    assert answers.read_results(frame, 4) == results
    error = ConfigError("what", where="x:1", fix="do")
    [frame] = answers.reader().feed(answers.error_frame(error))
    found = answers.read_results(frame, 4)
    assert (type(found), str(found)) == (ConfigError, str(error))


def test_an_answer_beyond_its_bound_is_the_rewards_error():
    [frame] = answers.reader().feed(answers.results_frame(["x" * (2 << 20)]))
    assert "more than 1048576 bytes for an item" in str(answers.read_results(frame, 1))


@pytest.mark.parametrize(
    "line", [b"0", b'["a"]', b'[1, {"a": "b"}]', b'[1, {"a": null}]', b"[null, {}]", b"{}", b"[true, {}]"]
)
def test_a_result_of_another_form_is_refused(line):
    with pytest.raises(FrameError):
        answers.read_results(Frame({"kind": "results"}, (line,)), 1)


def test_the_parent_of_a_process_is_known():
    assert parent_of(os.getpid()) == os.getppid()
    assert next(pid for pid in itertools.count(1 << 22) if parent_of(pid) is None)
