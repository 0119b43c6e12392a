"""Scorers in processes: order, limits, deaths, and nothing left behind."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hybridrl.errors import DeadlineError, RewardError, WorkerError
from hybridrl.rewards import children
from hybridrl.rewards.score import Score


def items(count):
    return (
        [str(i) for i in range(count)],
        [{"answer": i} for i in range(count)],
        [f"train/{i}" for i in range(count)],
    )


EARLIER: set[int] = set()


@pytest.fixture(autouse=True)
def earlier_processes():
    """Tests of other rooms leave multiprocessing's helper processes, which live as long as pytest does."""
    EARLIER.clear()
    EARLIER.update(process.pid for process in psutil.Process().children(recursive=True))


def processes():
    return [p for p in psutil.Process().children(recursive=True) if p.pid not in EARLIER]


def gone(pids):
    """Whether the processes end; zombies that nobody reaped have ended too."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        alive = [
            p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE
        ]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("num_workers", [1, 3])
def test_scores_come_in_the_order_of_the_answers(scorer, module, num_workers):
    name = module(
        "def f(answer, row): return {'reward': int(answer) - row['answer'] / 2, 'half': row['answer'] / 2}"
    )
    one = scorer(f"{name}:f", num_workers=num_workers)
    for count in (200, 0, 1, 7):
        assert one.score(*items(count)) == [Score(i / 2, {"half": i / 2}) for i in range(count)]


def test_the_processes_import_neither_torch_nor_transformers(scorer, module):
    heavy = "{'torch', 'transformers', 'numpy', 'ray', 'pyarrow'} & set(sys.modules)"
    name = module(f"import sys\ndef f(answer, row): return len({heavy})")
    assert scorer(f"{name}:f").score(*items(1)) == [Score(0.0, {})]


def test_the_owner_does_not_import_the_reward(scorer, module):
    name = module("def f(answer, row): return 1")
    scorer(f"{name}:f").score(*items(1))
    assert name not in sys.modules


def test_many_slow_rewards_may_together_take_longer_than_one_may(scorer, module):
    name = module("import time\ndef f(answer, row):\n    time.sleep(0.15)\n    return 1.0")
    assert scorer(f"{name}:f", timeout_s=0.9).score(*items(16)) == [Score(1.0, {})] * 16


def test_a_raising_reward_names_function_item_error_and_line(scorer, module):
    name = module("""\
        import json

        def f(answer, row):
            return helper(answer)

        def helper(answer):
            return 1 / (int(answer) - 5)

        def inside_a_library(answer, row):
            return json.loads(None)
    """)
    with pytest.raises(RewardError) as caught:
        scorer(f"{name}:f").score(*items(9))
    assert caught.value.what == f"reward {name}:f raised ZeroDivisionError on train/5: division by zero"
    assert caught.value.where.endswith(f"{name}.py:7 in helper: return 1 / (int(answer) - 5)")
    with pytest.raises(RewardError) as caught:
        scorer(f"{name}:inside_a_library").score(*items(1))
    assert caught.value.where.endswith(f"{name}.py:10 in inside_a_library: return json.loads(None)")


def test_a_scorer_serves_on_after_every_kind_of_failure(scorer, module):
    name = module("""\
        import ctypes, os, sys, time

        def f(answer, row):
            match answer:
                case 'raise': raise KeyError('x')
                case 'exit': sys.exit(3)
                case 'die': os._exit(7)
                case 'crash': ctypes.string_at(0)
                case 'kill': os.kill(os.getpid(), 9)
                case 'hang': time.sleep(1000)
                case 'none': return None
            return float(answer)
    """)
    one = scorer(f"{name}:f", timeout_s=0.8, num_workers=2)
    expected = {
        "raise": (RewardError, "raised KeyError on b: 'x'"),
        "exit": (RewardError, "raised SystemExit on b: 3"),
        "die": (RewardError, "on b: its process exited with code 7"),
        "crash": (RewardError, "on b: its process was ended by SIGSEGV"),
        "kill": (RewardError, "on b: its process was ended by SIGKILL"),
        "hang": (DeadlineError, "did not return for b within 0.8 s"),
        "none": (RewardError, "on b returned None, which is not a number"),
    }
    for answer, (error, message) in expected.items():
        with pytest.raises(error, match=message):
            one.score(["1", answer, "2"], [{}] * 3, ["a", "b", "c"])
        assert one.score(["1", "2"], [{}] * 2, ["a", "b"]) == [Score(1.0, {}), Score(2.0, {})]
    assert len(processes()) == 3


def test_a_crash_names_the_line(scorer, module):
    name = module("import ctypes\n\ndef f(answer, row):\n    return ctypes.string_at(0)\n")
    with pytest.raises(RewardError) as caught:
        scorer(f"{name}:f").score(*items(1))
    assert caught.value.where.endswith(f"{name}.py:4 in f")


@pytest.mark.parametrize(
    "body", ["while True: pass", "import time; time.sleep(1000)", "re.match('(a+)+$', 'a' * 60 + 'b')"]
)
def test_a_hanging_reward_names_function_item_seconds_and_line(scorer, module, body):
    name = module(f"import re\ndef f(answer, row):\n    if answer == '3':\n        {body}\n    return 0")
    with pytest.raises(DeadlineError) as caught:
        scorer(f"{name}:f", timeout_s=0.4).score(*items(6))
    assert caught.value.what == f"reward {name}:f did not return for train/3 within 0.4 s"
    assert caught.value.where.endswith(f"{name}.py:4 in f")
    assert caught.value.fix == "make it faster, or raise reward.timeout_s"


def test_a_catastrophic_pattern_of_the_regex_reward_is_stopped(scorer):
    with pytest.raises(DeadlineError, match="reward regex did not return for train/0 within 0.3 s"):
        scorer("regex", pattern="(a+)+$", timeout_s=0.3).score(["a" * 60 + "b"], [{}], ["train/0"])


def test_a_reward_that_says_so_gives_its_hang_score_and_all_others_are_scored(scorer, module):
    name = module("""\
        import time

        def f(answer, row):
            if answer in ('4', '11'):
                time.sleep(1000)
            return int(answer)

        f.hang_score = -1.0
    """)
    found = scorer(f"{name}:f", timeout_s=0.8, num_workers=2).score(*items(20))
    hung = Score(-1.0, {"timeout": 1.0})
    assert found == [hung if i in (4, 11) else Score(float(i), {}) for i in range(20)]


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ("float('nan')", "returned nan, which is not finite"),
        ("float('inf')", "returned inf, which is not finite"),
        ("'1.0'", "returned '1.0', which is not a number"),
        ("[1.0]", r"returned \[1.0\], which is not a number"),
        ("{'score': 1.0}", r"returned a mapping without 'reward': \['score'\]"),
        ("10**400", "returned a whole number that is too large for a float"),
        ("{'reward': 1.0, 'x': -10**400}", "returned x = a whole number that is too large for a float"),
        ("__import__('numpy').zeros(2)", r"returned array\(\[0., 0.\]\), which is not one number"),
        ("{'reward': 1.0, 'format': None}", "returned format = None, which is not a number"),
    ],
)
def test_what_is_not_a_finite_number_is_refused(scorer, module, returned, why):
    name = module(f"\ndef f(answer, row): return {returned}")
    with pytest.raises(RewardError, match=f"reward {name}:f on train/0 {why}") as caught:
        scorer(f"{name}:f").score(*items(1))
    assert caught.value.where.endswith(f"{name}.py:2")


@pytest.mark.parametrize("method", ["item(self)", "__repr__(self)"])
def test_what_fails_when_it_is_read_is_to_blame(scorer, module, method):
    name = module(f"""\
        class Silent(Exception):
            def __str__(self): 1 / 0

        class Odd:
            def {method}: raise Silent

        def f(answer, row): return Odd()
    """)
    with pytest.raises(
        RewardError, match=f"what reward {name}:f returned raised Silent on train/0"
    ) as caught:
        scorer(f"{name}:f").score(*items(1))
    assert f"{name}.py:5 in {method[:4]}" in caught.value.where


@pytest.mark.parametrize(
    "returned", ["True", "1", "np.float32(1)", "np.bool_(True)", "{'reward': np.array(1.0)}"]
)
def test_every_kind_of_number_is_one(scorer, module, returned):
    name = module(f"import numpy as np\ndef f(answer, row): return {returned}")
    assert scorer(f"{name}:f").score(*items(1)) == [Score(1.0, {})]


def test_close_leaves_no_process(scorer, module):
    name = module("def f(answer, row): return 1")
    one = scorer(f"{name}:f", num_workers=3)
    assert len(processes()) == 4
    one.close()
    one.close()
    assert processes() == []


def test_a_killed_reward_takes_along_what_it_started(scorer, module, tmp_path):
    note = tmp_path / "pid"
    name = module(f"""\
        import subprocess, time

        def f(answer, row):
            open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '1000']).pid))
            time.sleep(1000)
    """)
    with pytest.raises(DeadlineError):
        scorer(f"{name}:f", timeout_s=1.0).score(*items(1))
    assert gone([int(note.read_text())])


def test_nothing_outlives_an_owner_that_is_killed(module, tmp_path):
    name = module("import re\ndef f(answer, row): return bool(re.match('(a+)+$', 'a' * 60 + 'b'))")
    owner = tmp_path / "owner.py"
    owner.write_text(f"""\
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[3])!r}]
from hybridrl.config.schema import RewardConfig
from hybridrl.rewards.pool import Scorer
scorer = Scorer(RewardConfig(name="{name}:f", num_workers=2, timeout_s=1000))
print("up", flush=True)
scorer.score(["a"] * 2, [{{}}] * 2, ["a", "b"])
""")
    with subprocess.Popen([sys.executable, owner], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        pids = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        time.sleep(0.3)  # into the pattern
        process.kill()
    assert len(pids) == 3
    assert gone(pids)


def test_processes_that_somebody_else_ended_are_reported(scorer, module):
    name = module("def f(answer, row): return 1")
    one = scorer(f"{name}:f")
    [fork_server, child] = processes()
    os.kill(fork_server.pid, signal.SIGKILL)
    assert gone([child.pid])
    with pytest.raises(WorkerError, match="are gone: its process was ended by SIGKILL"):
        one.score(*items(3))


def test_a_child_whose_fork_server_ended_before_it_could_ask_to_die_with_it_ends():
    progress_fd = os.memfd_create("progress")
    os.ftruncate(progress_fd, children.SHARED_BYTES)
    jobs, kept = multiprocessing.Pipe()  # open: the child is not told by its end
    pid = os.fork()
    if pid == 0:
        not_its_parent = os.getpid()
        children._child(jobs.fileno(), progress_fd, None, "answer", not_its_parent)
    assert gone([pid])
    os.waitpid(pid, 0)
    kept.close()


def test_columns_of_unequal_length_are_refused(scorer):
    with pytest.raises(ValueError, match="2 answers, 1 rows and 2 uids"):
        scorer("exact_match").score(["a", "b"], [{}], ["x", "y"])


HUNGRY = {
    "list": "held = list(range(10**8))",
    "bytes": "held = bytearray(10**9)",
    "integer": "held = 1 << 8 * 10**9",
    "text": "held = 'a' * 10**9",
    "numpy": "import numpy; held = numpy.ones(10**9)",
}


@pytest.mark.parametrize("code", HUNGRY.values(), ids=HUNGRY)
def test_a_reward_takes_no_more_memory_than_its_limit(scorer, module, code):
    source = f"""
        def f(answer, row):
            if answer == "much":
                {code}
            return 1.0
        def g(answer, row):
            return f(answer, row)
        g.hang_score = -1.0
    """
    name = module(source)
    one = scorer(f"{name}:f", memory_gb=0.3)
    with pytest.raises(RewardError, match="needed more than reward.memory_gb = 0.3 on train/1") as refused:
        one.score(["few", "much"], [{}] * 2, ["train/0", "train/1"])
    assert f"{name}.py:4 in f" in refused.value.where or "numpy" in code
    assert one.score(["few"], [{}], ["a"])[0].reward == 1.0
    patient = scorer(f"{name}:g", memory_gb=0.3)
    found = patient.score(["few", "much", "few"], [{}] * 3, ["a", "b", "c"])
    assert [(s.reward, s.parts) for s in found] == [(1.0, {}), (-1.0, {"timeout": 1.0}), (1.0, {})]


def test_a_program_that_a_reward_starts_has_the_same_limit(scorer, module):
    name = module("""
        import subprocess, sys
        def f(answer, row):
            code = "held = bytearray(10**9)"
            return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
    """)
    assert scorer(f"{name}:f", memory_gb=0.3).score(["x"], [{}], ["a"])[0].reward == 1.0


@pytest.mark.parametrize("memory_gb", [1e10, math.inf])
def test_a_limit_beyond_every_machine_is_none(scorer, module, memory_gb):
    name = module("def f(answer, row): return len(bytearray(10**8)) / 1e8")
    assert scorer(f"{name}:f", memory_gb=memory_gb).score(["x"], [{}], ["a"])[0].reward == 1.0


def test_memory_that_loading_took_is_not_counted(scorer, module):
    name = module("""
        table = bytearray(4 * 10**8)
        def f(answer, row): return len(bytearray(10**8)) / 1e8
    """)
    assert scorer(f"{name}:f", memory_gb=0.2).score(["x"], [{}], ["a"])[0].reward == 1.0
