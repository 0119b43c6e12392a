"""A soak: random processes of runs are killed, and the runs are compared with one that nothing happened to.

Each run gets a seed and suffers kills of engines, their workers, trainer ranks, reward workers and the driver
at random steps and phases, and some runs kills of Ray's own processes at random times. A run that ends is
launched again with --continue. Synchronous runs must equal the calm run bit for bit; in streaming runs every
group of prompts must be trained on once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import arguments, publish
from hybridrl.faults import parse
from hybridrl.trainer import saved_groups
from hybridrl.trainer.checkpoints import newest_undamaged, whole_checkpoints

RESULT = {
    "runs": "mode, seed, faults, launches, seconds, and what was found of each run",
    "kills": "kind of process -> how many kills were asked for",
    "kills_in_all": "the sum of them",
    "runs_that_did_not_end": "runs that did all steps neither by themselves nor resumed",
    "runs_that_differ": "synchronous runs whose metrics or model are not those of the calm run",
    "groups_lost_or_twice": "groups of prompts that a streaming run trained on never or twice",
    "corrupt_checkpoints": "checkpoints whose files do not match their record",
    "orphans": "processes that ran 30 s after their run had ended",
}

TARGETS = ("engine", "engine_worker", "trainer", "reward", "driver")
PHASES = {
    "engine": ("generate", "swap"),
    "engine_worker": ("generate", "swap"),
    "trainer": ("load", "update", "swap", "save"),
    "reward": ("reward",),
    "driver": ("generate", "update", "swap", "save"),
}
SAME = ("critic/score/mean", "actor/grad_norm", "actor/loss", "response_length/mean")
STREAMING = ("batch.max_lag=2", "batch.order=finished", "rollout.swap=in_flight")
_MARK, _LEFT_S, _MOST_LAUNCHES, _PROMPTS = "RUN_OF_SOAK", 30.0, 12, 8


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"runs": 1, "steps": 3, "kills": 1},
        config="configs/quickstart.yaml",
        runs=6,
        steps=8,
        kills=4,
        seed=0,
    )
    with tempfile.TemporaryDirectory(prefix="hybridrl-soak-") as name:
        soak = Soak(options.config, Path(name), options.steps)
        calm = soak.play("calm", "synchronous", random.Random(0), 0)
        runs = []
        for number in range(options.runs):
            seed, mode = options.seed + number, ("synchronous", "streaming")[number % 2]
            runs.append(soak.play(f"run{number}", mode, random.Random(seed), options.kills, seed=seed))
            if mode == "synchronous":
                runs[-1].differs = runs[-1].ended and soak.differs(calm.name, runs[-1].name)
            print(json.dumps(runs[-1].as_dict()), file=sys.stderr, flush=True)
    publish(summary([calm, *runs]), options.json)


@dataclass(slots=True)
class Played:
    name: str
    mode: str
    seed: int
    faults: list[str]
    ray: list[str] = field(default_factory=list)
    launches: int = 0
    seconds: float = 0.0
    ended: bool = False
    differs: bool = False
    lost_or_twice: int = 0
    corrupt: int = 0
    orphans: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "name"}

    @property
    def kills(self) -> Counter[str]:
        return Counter([*(parse(fault).target for fault in self.faults), *self.ray])


class Soak:
    def __init__(self, config: str, folder: Path, steps: int) -> None:
        self._config, self._folder, self._steps = config, folder, steps

    def play(self, name: str, mode: str, draw: random.Random, kills: int, *, seed: int = 0) -> Played:
        """Launch a run until it is done."""
        played = Played(name, mode, seed, faults(draw, self._steps, kills))
        mark, began, left = uuid.uuid4().hex, time.monotonic(), list(played.faults)
        while not played.ended and played.launches < _MOST_LAUNCHES:
            of_ray = draw.choice(("raylet", "gcs_server")) if kills and draw.random() < 0.4 else ""
            if of_ray and len(played.ray) < kills // 2:
                played.ray.append(of_ray)
            else:
                of_ray = ""
            code = self._launch(name, mode, left, mark, of_ray, draw.uniform(10, 40))
            played.launches, played.ended = played.launches + 1, code == 0
            played.orphans += left_over(mark)
            left = [fault for fault in left if parse(fault).step > self._last_step(name)]
        played.seconds = round(time.monotonic() - began, 1)
        self._look_at(played)
        return played

    def differs(self, calm: str, name: str) -> bool:
        """Whether metrics or the exported model of a run are not those of the calm one."""
        models = [(self._folder / run / "export" / "model.safetensors").read_bytes() for run in (calm, name)]
        expected, found = self._metrics(calm), self._metrics(name)
        return models[0] != models[1] or expected != found

    def _launch(
        self, name: str, mode: str, faults: Sequence[str], mark: str, of_ray: str, after_s: float
    ) -> int:
        words = [
            *(
                f"run.folder={self._folder}",
                f"run.name={name}",
                f"run.steps={self._steps}",
                "run.save_every=1",
            ),
            *("run.evaluate_every=0", "run.keep_checkpoints=1000", "run.max_restarts=3", "observe.sinks=[]"),
            *("rollout.num_engines=2", f"batch.prompts_per_step={_PROMPTS}", "batch.minibatch_prompts=4"),
            *(STREAMING if mode == "streaming" else ()),
            *(word for fault in faults for word in ("--inject", fault)),
        ]
        command = [sys.executable, "-m", "hybridrl", "launch", self._config, "--continue", *words]
        with (self._folder / f"{name}.log").open("a") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {_MARK: mark})
        killer = threading.Timer(after_s, kill, (mark, of_ray)) if of_ray else None
        if killer:
            killer.start()
        code = driver.wait()
        if killer:
            killer.cancel()
        return code

    def _last_step(self, name: str) -> int:
        """The step in which a run was when it ended: the one after the last that it has metrics of."""
        return max(self._metrics(name), default=0) + 1

    def _metrics(self, name: str) -> dict[int, dict[str, float]]:
        file = self._folder / name / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [record for record in map(_record, lines) if record.get("kind") == "step"]
        return {record["step"]: {key: record[key] for key in SAME} for record in records}

    def _look_at(self, played: Played) -> None:
        checkpoints = self._folder / played.name / "checkpoints"
        found = newest_undamaged(checkpoints)
        played.corrupt = sum(not flawed.unfinished for flawed in found.passed_over)
        trained = [set[int](), *(done(one.folder) for one in whole_checkpoints(checkpoints))]
        for earlier, later in zip(trained, trained[1:], strict=False):
            new = later - earlier
            played.lost_or_twice += len(earlier - later) + abs(len(new) - _PROMPTS)


def faults(draw: random.Random, steps: int, count: int) -> list[str]:
    """Kills of random processes at random steps and phases, at most one in a step."""
    found = []
    for step in sorted(draw.sample(range(1, steps + 1), min(count, steps))):
        target = draw.choice(TARGETS)
        rank = draw.randrange(2) if target.startswith("engine") else 0
        found.append(f"kill:{target}:{rank}@step={step},phase={draw.choice(PHASES[target])}")
    return found


def done(checkpoint: Path) -> set[int]:
    """Indices of the groups that were started and are no longer open: those that were trained on."""
    progress = json.loads((checkpoint / "COMMITTED").read_text())["progress"]
    prompts = progress["prompts"]
    scalars, blocks = saved_groups.read(checkpoint)
    finished = set(scalars["index_G"].tolist()) if blocks else set[int]()
    position = prompts["epoch"] * prompts["num_rows"] + prompts["position"]
    return set(range(position)) - finished - set(progress["open"]["unfinished"])


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(mark: str, name: str) -> None:
    """Kill one of Ray's own processes of a run."""
    for process in processes(mark):
        try:
            if process.name().startswith(name[:15]):
                process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def left_over(mark: str) -> int:
    """Processes of a run that has ended which still run after _LEFT_S; they are ended."""
    deadline = time.monotonic() + _LEFT_S
    while (found := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in found:
        try:
            process.kill()
        except psutil.Error:
            continue
    return len(found)


def summary(runs: Sequence[Played]) -> dict[str, Any]:
    kills = sum((run.kills for run in runs), Counter[str]())
    return {
        "runs": [run.as_dict() for run in runs],
        "kills": dict(sorted(kills.items())),
        "kills_in_all": kills.total(),
        "runs_that_did_not_end": sum(not run.ended for run in runs),
        "runs_that_differ": sum(run.differs for run in runs),
        "groups_lost_or_twice": sum(run.lost_or_twice for run in runs),
        "corrupt_checkpoints": sum(run.corrupt for run in runs),
        "orphans": sum(run.orphans for run in runs),
    }


def _record(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:  # a killed driver may leave half a line
        return {}


if __name__ == "__main__":
    main()
