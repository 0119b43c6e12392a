"""Planted hangs on the real stack. Each run ends within the deadline of what hangs and 10 s, and says in
which phase it was, who hangs, and which key of the config is the deadline."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_processes import Ended, harmed, stop, with_signal
from fault_runs import write_project
from machine_faults import (
    OWN_SHARED_MEMORY,
    fill,
    fill_shared_memory,
    is_driver,
    missing,
    small_disk,
    two_nodes,
)

from benchmarks._soak import differs, processes

needs_root = pytest.mark.skipif(bool(missing()), reason=missing())

pytestmark = pytest.mark.slow

SECONDS = 15
"""Deadline of everything that is planted to hang."""

SLACK_S = 10.0

WORDS = (
    *("run.steps=3", "run.evaluate_every=0", "rollout.max_restarts=0", "actor.parallel.tp=2"),
    *("observe.sinks=[]", "batch.prompts_per_step=4", "batch.minibatch_prompts=2"),
    *("rollout.max_response_tokens=20", "rollout.engine=tiny_engine:TinyTransformer"),
)
"""The engine of tests/support starts fast; it is in the process of its worker."""
EPISODES = ("reward=none", "rollout.max_context_tokens=100", "cluster.deadlines.generate_s=200")
"""An episode that is overdue is played three times, each in a new process; the engine waits for all."""


@dataclass(frozen=True)
class Hang:
    fault: str = ""
    """As --inject reads it."""

    key: str = ""
    """The deadline, which the error names."""

    error: str = ""
    """Words of the error."""

    phase: str = ""
    """The span of the driver in which it happens."""

    stack: str = ""
    """Words of the stack of who hangs."""

    words: Sequence[str] = ()
    code: int = 3
    harm: Callable[[Path], None] | None = None
    """What is done to the run from outside."""

    before: Sequence[str] = ()
    """Words in front of the command."""


HANGS = {
    "a rank that skips a collective": Hang(
        "skip:trainer:1@step=2,phase=update",
        "cluster.deadlines.collective_s",
        "trainer rank [0] waited in a collective during 'step' for rank [1], which returned from 'step'",
        "update_actor",
    ),
    "a rank that hangs in an update": Hang(
        "hang:trainer:1@step=2,phase=update",
        "cluster.deadlines.train_s",
        "trainer 1 has not returned from 'step'",
        "update_actor",
        "workers/planted.py",
    ),
    "a rank that is stopped in an update": Hang(
        "stop:trainer:1@step=2,phase=update",
        "cluster.deadlines.train_s",
        "trainer 1 has not returned from 'step'",
        "update_actor",
        "does not run, as after SIGSTOP",
    ),
    "a rank that hangs before log-probabilities": Hang(
        "hang:trainer:0@step=2,phase=load",
        "cluster.deadlines.train_s",
        "trainer 0 has not returned from 'measure'",
        "old_log_prob",
        "workers/planted.py",
    ),
    "a rank that hangs in a swap": Hang(
        "hang:trainer:1@step=2,phase=swap",
        "cluster.deadlines.swap_s",
        "trainer 1 has not returned from 'write_weights'",
        "update_weights",
        "workers/planted.py",
    ),
    "a save that hangs": Hang(
        "hang:trainer:0@step=2,phase=save",
        "cluster.deadlines.save_s",
        "trainer 0 has not returned from 'save'",
        "save_checkpoint",
        "workers/planted.py",
    ),
    "a rank that is stopped in a save": Hang(
        "stop:trainer:0@step=2,phase=save",
        "cluster.deadlines.save_s",
        "trainer 0 has not returned from 'save'",
        "save_checkpoint",
        "does not run, as after SIGSTOP",
    ),
    "a reward worker that hangs": Hang(
        "hang:reward:0@step=2,phase=reward",
        "cluster.deadlines.reward_s",
        "reward 0 has not returned from 'score'",
        "wait_for_batch",
        "workers/planted.py",
    ),
    "a reward worker that is stopped": Hang(
        "stop:reward:0@step=2,phase=reward",
        "cluster.deadlines.reward_s",
        "reward 0 has not returned from 'score'",
        "wait_for_batch",
        "does not run, as after SIGSTOP",
    ),
    "an engine that is paused": Hang(
        "pause:engine:0@step=2,phase=generate",
        "cluster.deadlines.generate_s",
        "engine rank [0] did not finish 'finished'",
        "wait_for_batch",
    ),
    "an engine that is stopped": Hang(
        "stop:engine:0@step=2,phase=generate",
        "cluster.deadlines.generate_s",
        "engine rank [0] did not finish",
        "wait_for_batch",
        "does not run, as after SIGSTOP",
        words=("rollout.engine=sglang",),
    ),
    "the worker of an engine that is stopped in a swap": Hang(
        "stop:engine_worker:1@step=2,phase=swap",
        "cluster.deadlines.",
        "engine rank [1] did not finish",
        "update_weights",
        "does not run, as after SIGSTOP",
    ),
    "a driver that hangs": Hang(
        "hang:driver@step=2,phase=update",
        "cluster.deadlines.dispatch_s",
        "the driver hangs: it did not return to its event loop",
        "update_actor",
        "workers/planted.py",
    ),
    "an actor that is lost": Hang(
        "kill:reward:0@step=2,phase=reward", "", "reward rank 0 died during 'score'", "wait_for_batch", code=1
    ),
    "a stuck regex": Hang(
        "",
        "reward.timeout_s",
        "stuck.py",
        words=("reward=stuck:score", f"reward.timeout_s={SECONDS}", "cluster.deadlines.reward_s=200"),
    ),
    "an environment that hangs in a step": Hang(
        "",
        "environment.step_timeout_s",
        "step did not return within",
        words=("environment={name: 'hanging:Step', max_turns: 2, step_timeout_s: 3}", *EPISODES),
        code=1,
    ),
    "an environment that hangs in a reset": Hang(
        "",
        "environment.reset_timeout_s",
        "reset did not return within",
        words=("environment={name: 'hanging:Reset', max_turns: 2, reset_timeout_s: 3}", *EPISODES),
        code=1,
    ),
    "a raylet that is stopped": Hang("", "", "", harm=stop("raylet")),
}


STUCK = """
import re, time
from pathlib import Path

METRICS = Path({metrics!r})


def under_way():
    return METRICS.exists() and '"step": 1' in METRICS.read_text()
"""

REWARD = (
    STUCK
    + """
def score(answer, row):
    if under_way():
        re.match(r"(a+)+$", "a" * 60 + "b")
    return float(len(answer) % 2)
"""
)

ENVIRONMENTS = (
    STUCK
    + """
from hybridrl.environments.base import Observation


class Step:
    def reset(self, row, seed):
        return Observation("")

    def step(self, turn):
        while under_way():
            time.sleep(1)
        return Observation(reward=float(len(turn.text) % 2), done=True)


class Reset(Step):
    def reset(self, row, seed):
        while under_way():
            time.sleep(1)
        return Observation("")

    def step(self, turn):
        return Observation(reward=float(len(turn.text) % 2), done=True)
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project")
    write_project(path)
    return path


def name_of(case: str) -> str:
    return case.replace(" ", "_")


def deadlines() -> list[str]:
    keys = ("dispatch_s", "generate_s", "reward_s", "train_s", "collective_s", "swap_s", "save_s")
    return [f"rollout.alive_timeout_s={SECONDS}", *(f"cluster.deadlines.{key}={SECONDS}" for key in keys)]


def played(folder: Path, case: str, hang: Hang) -> Ended:
    own = folder / "own" / name_of(case)
    own.mkdir(parents=True, exist_ok=True)
    metrics = str(folder / "runs" / name_of(case) / "metrics.jsonl")
    (own / "stuck.py").write_text(REWARD.format(metrics=metrics))
    (own / "hanging.py").write_text(ENVIRONMENTS.format(metrics=metrics))
    words = [*WORDS, *deadlines(), *hang.words]
    if hang.key == "cluster.deadlines.collective_s":
        words.append("cluster.deadlines.train_s=200")
    words += ["--inject", hang.fault] if hang.fault else []
    return harmed(folder, name_of(case), words, hang.harm, before=hang.before, path=own)


def why(folder: Path, name: str) -> str:
    command = [sys.executable, "-m", "hybridrl", "why", f"runs/{name}"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("case", HANGS)
def test_a_hang_is_named_within_its_deadline(folder: Path, case: str) -> None:
    hang = HANGS[case]
    ended = played(folder, case, hang)
    assert ended.code == hang.code, ended.out
    report = folder / "runs" / name_of(case) / "why.txt"
    told = " ".join(why(folder, name_of(case)).split()) if report.exists() else ended.out
    for words in (hang.error, hang.key):
        assert words in told or words in ended.out, f"{told}\n{ended.out}"
    if report.exists():
        assert "phase step 2: step for" in told or hang.phase == "save_checkpoint", told
        assert hang.phase in told.partition(" --- ")[0] and hang.stack.replace(" ", "") in told.replace(
            " ", ""
        ), told
    began = ended.planted_at or time_of_step(folder / "runs" / name_of(case), 1)
    at = report.stat().st_mtime if report.exists() else ended.ended_at
    assert at - began <= SECONDS + SLACK_S, (at - began, told)


@needs_root
def test_a_full_disk_ends_the_run_and_is_named(folder: Path) -> None:
    with small_disk(folder / "disk", 60) as disk:
        words = [*WORDS, f"run.folder={disk}"]
        ended = harmed(folder, "full", words, lambda _: fill(disk), run=disk / "full")
        assert ended.code == 2, ended.out
        assert "No space left on device" in ended.out and str(disk / "full") in ended.out, ended.out
        assert ended.ended_at - ended.planted_at <= SECONDS + SLACK_S
        assert (disk / "full" / "checkpoints" / "step_000001" / "COMMITTED").exists()


def test_a_gcs_that_is_stopped_keeps_no_run_from_its_end(folder: Path) -> None:
    """Training asks it nothing; the end of a run does, for every worker."""
    ended = harmed(folder, "gcs", [*WORDS, *deadlines()], stop("gcs_server"))
    assert ended.code == 0, ended.out
    assert ended.ended_at - ended.planted_at <= 120.0, ended.out


WHILE_STEP_2 = (
    *("cluster.deadlines.train_s=200", "cluster.deadlines.collective_s=200", "--inject"),
    "slow:trainer:0@step=2,phase=load,seconds=15",
)
"""Holds step 2 while something is done to the run."""


@needs_root
def test_full_shared_memory_does_not_touch_a_run_that_has_what_it_needs(folder: Path) -> None:
    assert harmed(folder, "calm", WORDS, None).code == 0
    words = [*WORDS, *deadlines(), *WHILE_STEP_2]
    ended = harmed(folder, "shm", words, fill_shared_memory, before=OWN_SHARED_MEMORY)
    assert ended.code == 0, ended.out
    assert not differs(folder / "runs" / "calm", folder / "runs" / "shm")


@needs_root
def test_whoever_needs_more_shared_memory_than_there_is_is_named(folder: Path) -> None:
    """An engine takes the place of one that is killed, and has no room for its parameters."""
    words = [
        *(*WORDS, *deadlines(), "rollout.max_restarts=1", "rollout.num_engines=1", *WHILE_STEP_2),
        *("--inject", "kill:engine_worker:0@step=2,phase=swap"),
    ]
    ended = harmed(folder, "shm_engine", words, fill_shared_memory, before=OWN_SHARED_MEMORY)
    assert ended.code == 2, ended.out
    assert "engine 0 is lost, another one starts" in ended.out, ended.out
    assert "bytes to shared memory" in ended.out and "No space left on device" in ended.out, ended.out


@needs_root
def test_a_cut_between_two_nodes_names_the_rank_on_the_other_one(folder: Path) -> None:
    with two_nodes(folder) as cluster:
        words = [
            *(*WORDS, *deadlines(), "--on", "ray", f"cluster.ray.address={cluster.address}"),
            *("cluster.nodes=2", "cluster.start_timeout_s=200", "cluster.deadlines.collective_s=200"),
        ]
        ended = harmed(folder, "cut", words, lambda _: cluster.cut(), before=cluster.on_first)
    assert ended.code == 3, ended.out
    told = why(folder, "cut")
    late = re.search(r"waiting (trainer|engine) (\d) has not returned from", " ".join(told.split()))
    assert late is not None, told
    own = told.partition(f"--- {late[1]} {late[2]}\n")[2].partition("\n\n")[0]
    assert own == "its node did not answer: TimeoutError", told
    at = (folder / "runs" / "cut" / "why.txt").stat().st_mtime
    assert at - ended.planted_at <= SECONDS + SLACK_S + 20, told  # Ray's node gives no stacks for 20 s


def time_of_step(run: Path, step: int) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(line["time"] for line in lines if line["kind"] == "step" and line["step"] == step)


def test_of_a_driver_that_is_stopped_why_tells_so(folder: Path) -> None:
    """A stopped driver can name nobody; whoever asks from outside is told."""
    said = []

    def harm(temporary: Path) -> None:
        (driver,) = filter(is_driver, processes(temporary))
        with_signal(driver, signal.SIGSTOP)
        time.sleep(12.0)
        said.append(" ".join(why(folder, "stopped").split()))
        with_signal(driver, signal.SIGCONT)

    ended = harmed(folder, "stopped", [*WORDS], harm)
    assert ended.code == 0, ended.out
    assert "the driver does nothing since 1" in said[0] and "which is stopped, as after SIGSTOP" in said[0]
    assert re.search("in step [12]:", said[0])  # the signal may come between the two
