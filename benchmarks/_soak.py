"""What a soak does to a run and what it then checks: kills, processes of the run, and what the run left."""

import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hybridrl.errors import CheckpointError
from hybridrl.faults import FAULTS_FILE, parse
from hybridrl.trainer import committed, saved_groups
from hybridrl.trainer.checkpoints import whole_checkpoints

SAME = (
    *("critic/score/mean", "actor/grad_norm", "actor/loss", "response_length/mean"),
    *("rollout/tokens/with_gradient", "rollout/tokens/no_gradient"),
)
"""Metrics of a step that do not depend on which groups came back together."""

_LEFT_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of run, and what is killed in it."""

    config: str
    overrides: tuple[str, ...]
    planted: Mapping[str, tuple[str, ...]]
    """Target of --inject, with its rank -> its phases."""

    outside: tuple[str, ...]
    """Kinds of processes that are killed from outside at a random moment of a step."""

    is_exact: bool = True
    """Whether its metrics and its model are those of the run that nothing happened to, bit for bit."""

    prompts: int = 8
    """Prompts of a step."""


PLANTED = {
    "engine:0": ("generate", "swap"),
    "engine:1": ("generate", "swap"),
    "engine_worker:0": ("generate", "swap"),
    "engine_worker:1": ("generate", "swap"),
    "trainer:0": ("load", "update", "swap", "save"),
    "trainer:1": ("load", "update", "swap", "save"),
    "reward:0": ("reward",),
    "driver:0": ("generate", "update", "swap", "save"),
}
_UNSCORED = {target: phases for target, phases in PLANTED.items() if target != "reward:0"}
_SIZES = ("batch.prompts_per_step=8", "batch.minibatch_prompts=4", "rollout.num_engines=2")
_STREAMING = ("batch.max_lag=2", "batch.order=finished", "rollout.swap=in_flight")
_SMALL = (*_SIZES, "actor.parallel.tp=1", "rollout.engine=tiny_engine:TinyTransformer")
_OF_SMALL = {
    target: phases for target, phases in PLANTED.items() if target[:-2] != "engine" and target != "trainer:1"
}
_EPISODES = (*_SIZES, "actor.parallel.tp=2", "data.heldout.size=20", "algorithm.samples_per_prompt=4")
_RAY = ("raylet", "gcs_server")

SCENARIOS: Mapping[str, Scenario] = {
    "synchronous": Scenario(
        "configs/quickstart.yaml", _SIZES, PLANTED, (*_RAY, "scheduler", "scoring", "fork_server")
    ),
    "streaming": Scenario(
        "configs/quickstart.yaml",
        (*_SIZES, *_STREAMING),
        PLANTED,
        (*_RAY, "scheduler", "scoring"),
        is_exact=False,
    ),
    "small": Scenario("configs/quickstart.yaml", _SMALL, _OF_SMALL, (*_RAY, "scoring", "fork_server")),
    "small_streaming": Scenario(
        "configs/quickstart.yaml",
        (*_SMALL, *_STREAMING),
        _OF_SMALL,
        (*_RAY, "scoring", "fork_server"),
        is_exact=False,
    ),
    "episodes": Scenario("configs/guess.yaml", _EPISODES, _UNSCORED, (*_RAY, "environment", "scheduler")),
    "program": Scenario("configs/agent_program.yaml", _EPISODES, _UNSCORED, (*_RAY, "program")),
    "learning": Scenario(
        "configs/quickstart.yaml",
        ("rollout.num_engines=2",),
        PLANTED,
        (*_RAY, "scheduler", "scoring", "fork_server"),
        prompts=64,
    ),
}
"""Name -> runs. Those of `small` have the engine of tests/support, which starts fast, in the engine's worker.
The gateway of `program` is in that worker too, `engine_worker`. `learning` has the quickstart's batches."""

PATHS = ("tests/support",)
"""Folders on PYTHONPATH."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    "raylet": ("raylet/raylet",),
    "gcs_server": ("gcs/gcs_server",),
    "scheduler": ("sglang::scheduler",),
    "fork_server": ("hybridrl.rewards.children",),
    "scoring": ("hybridrl.rewards.children",),
    "environment": ("hybridrl.environments.child",),
    "program": ("agent_program.py",),
}
"""Kind of process -> words of which its command line has one."""

DRIVERS = ("driver", *_RAY)
"""Kinds whose death no worker of the run can outlive."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill that is asked for: one that is planted, or, without a phase, one from outside."""

    target: str
    step: int
    phase: str = ""

    @property
    def kind(self) -> str:
        return _kind(self.target)

    def __str__(self) -> str:
        where = f"step={self.step},phase={self.phase}" if self.phase else f"step={self.step}"
        return f"kill:{self.target}@{where}"


@dataclass(slots=True)
class Played:
    """One run of a soak, with all of its launches."""

    name: str
    mode: str
    seed: int
    kills: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    launches: int = 0
    restarts: int = 0
    """Starts that the run made by itself."""

    seconds: float = 0.0
    ended: bool = False
    differs: bool = False
    lost_or_twice: int = 0
    corrupt: int = 0
    orphans: int = 0
    leftovers: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "name"}


def plan(
    draw: random.Random, scenario: Scenario, steps: int, count: int, only: Sequence[str] = ()
) -> list[Kill]:
    """Kills at different random steps from the second on.

    Args:
        only: kinds that are killed; empty: all, and every third kill is one of a driver or of Ray.
    """
    targets = [*scenario.planted, *scenario.outside]
    rest = [name for name in targets if _kind(name) in only or (not only and _kind(name) not in DRIVERS)]
    draw.shuffle(rest)
    found = []
    for place, step in enumerate(sorted(draw.sample(range(2, steps + 1), min(count, steps - 1)))):
        is_third = not only and place % 3 == 2
        target = draw.choice(("driver:0", *_RAY)) if is_third else rest[place % len(rest)]
        found.append(Kill(target, step, draw.choice(scenario.planted.get(target, ("",)))))
    return found


def _kind(target: str) -> str:
    return target.partition(":")[0]


class Killer:
    """Kills processes of a run from outside, each at a random moment of its step, in a thread."""

    def __init__(self, run: Path, temporary: Path, kills: Sequence[Kill], draw: random.Random) -> None:
        self._run, self._temporary, self._over = run, temporary, threading.Event()
        self._kills = [(kill, draw.uniform(0.0, 0.6)) for kill in kills]
        self.happened: list[Kill] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        for kill, after_s in self._kills:
            while last_step(self._run) < kill.step - 1:
                if self._over.wait(_POLL_S):
                    return
            if self._over.wait(after_s):
                return
            if kill_one(self._temporary, kill.kind):
                self.happened.append(kill)


def kill_one(temporary: Path, kind: str) -> bool:
    """Kill a process of a run; whether there was one."""
    found = [process for process in processes(temporary) if is_of(process, kind)]
    for process in found[-1:]:
        try:
            process.send_signal(signal.SIGKILL)
            return True
        except psutil.Error:
            continue
    return False


def is_of(process: psutil.Process, kind: str) -> bool:
    """Whether a process is of a kind; a fork server is the parent of the scoring processes."""
    try:
        line = " ".join(process.cmdline())
        if not any(word in line for word in _WORDS[kind]) or "ray::" in line:
            return False
        if kind in ("scoring", "fork_server"):
            parent = process.parent()
            is_forked = parent is not None and _WORDS[kind][0] in " ".join(parent.cmdline())
            return is_forked == (kind == "scoring")
    except psutil.Error:
        return False
    return True


def processes(temporary: Path) -> list[psutil.Process]:
    """The processes of a run that are not dead. All of them inherit its temporary folder, or one inside."""
    found = []
    for process in psutil.process_iter():
        try:
            folder = process.environ().get("TMPDIR", "")
            if f"{folder}/".startswith(f"{temporary}/") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_over(temporary: Path) -> tuple[int, int]:
    """Processes of a run that has ended which still run after _LEFT_S, and files in its temporary folder. The
    processes are ended."""
    deadline = time.monotonic() + _LEFT_S
    while (processes(temporary) or any(temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.2)
    found, files = processes(temporary), [path.name for path in temporary.iterdir()]
    if files:
        print(f"left in {temporary}: {', '.join(files)}", file=sys.stderr, flush=True)
    for process in found:
        try:
            process.kill()
        except psutil.Error:
            continue
    return len(found), len(files)


def planted_that_happened(run: Path) -> list[str]:
    """The kills that the processes of a run have noted before they died."""
    file = run / FAULTS_FILE
    lines = file.read_text().splitlines() if file.exists() else []
    faults = [record["fault"] for record in map(read_line, lines) if record]
    return [fault for fault in faults if parse(fault).kind == "kill"]


def last_step(run: Path) -> int:
    """The last step that a run has metrics of; 0: none."""
    return max(metrics(run), default=0)


def metrics(run: Path) -> dict[int, dict[str, float]]:
    """Step -> its metrics that a run without kills has too."""
    return {record["step"]: {key: record[key] for key in SAME} for record in records(run, "step")}


def records(run: Path, kind: str) -> Iterator[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return (record for record in map(read_line, lines) if record.get("kind") == kind)


def differs(calm: Path, run: Path) -> bool:
    """Whether metrics, scores of the last evaluation, or the exported model are not those of the calm run."""
    models = [(folder / "export" / "model.safetensors").read_bytes() for folder in (calm, run)]
    return models[0] != models[1] or metrics(calm) != metrics(run) or scores(calm) != scores(run)


def scores(run: Path) -> dict[str, float]:
    """Held-out scores of the last evaluation."""
    last = list(records(run, "evaluation"))[-1:]
    return {key: value for record in last for key, value in record.items() if key.startswith("val-core/")}


def corrupt(checkpoints: Path) -> int:
    """Committed checkpoints of which a file does not match its checksum."""
    count = 0
    for record in checkpoints.glob(f"step_*/{committed.RECORD}"):
        try:
            committed.verify(record.parent)
        except CheckpointError:
            count += 1
    return count


def lost_or_twice(checkpoints: Path, prompts: int) -> int:
    """Groups of prompts that a run has trained on never or twice, as its checkpoints count them."""
    trained = [set[int](), *(done(one.folder) for one in whole_checkpoints(checkpoints))]
    return sum(
        len(earlier - later) + abs(len(later - earlier) - prompts)
        for earlier, later in zip(trained, trained[1:], strict=False)
    )


def done(checkpoint: Path) -> set[int]:
    """Indices of the groups that were started and are no longer open: those that were trained on."""
    progress = json.loads((checkpoint / committed.RECORD).read_text())["progress"]
    prompts = progress["prompts"]
    scalars, blocks = saved_groups.read(checkpoint)
    finished = set(scalars["index_G"].tolist()) if blocks else set[int]()
    position = prompts["epoch"] * prompts["num_rows"] + prompts["position"]
    return set(range(position)) - finished - set(progress["open"]["unfinished"])


def read_line(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:  # a killed driver may leave half a line
        return {}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder by which the processes of a run are known. Its path is short, because Ray puts sockets inside,
    whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as name:
        yield Path(name)
