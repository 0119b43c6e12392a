"""A run whose trainer dies, on fakes of engines and ranks: the engines stay, and the rest goes on from the
checkpoint."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import controller_fakes
import pytest

from hybridrl import cli
from hybridrl.errors import WorkerError
from hybridrl.launch import local
from hybridrl.launch.restarts import Restarts

DIED = "trainer rank 0 died during 'measure'"


class World(controller_fakes.World):
    """Its trainer dies at one step, and its checkpoints are in memory."""

    def __init__(self, told: "Told", version: int) -> None:
        super().__init__(version=version)
        self.told = told

    async def load(self, batch: Any, minibatches: Any) -> dict[str, float]:
        self.told.trained.append((batch.step, [group.prompt.uid for group in batch.groups]))
        if batch.step == self.told.dies_at:
            self.told.dies_at = 0
            raise WorkerError(DIED)
        return await super().load(batch, minibatches)

    async def save(self, step: int, progress: Any, groups: Any) -> None:
        self.told.saved[step] = json.loads(json.dumps(progress))


@dataclass
class Told:
    """What happened over all starts of a run."""

    dies_at: int
    breaks: bool = False
    """Whether the trainer cannot start beside the engines."""

    log: list[str] = field(default_factory=list)
    trained: list[tuple[int, list[str]]] = field(default_factory=list)
    saved: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Starts:
    """In the place of launch/start_workers.py."""

    told: Told
    warn: Any = None
    mirror: Any = None

    def all(self, faults: Any) -> Any:
        self.told.log.append("all workers start")
        return self._workers()

    async def end_training(self, workers: Any) -> None:
        self.told.log.append("training ends")

    def again(self, workers: Any, rollout: Any) -> Any:
        if self.told.breaks:
            raise WorkerError("no room")
        self.told.log.append("training starts again")
        return self._workers()

    def _workers(self) -> Any:
        async def begin_again() -> Any:
            self.told.log.append("engines forget")
            return SimpleNamespace(workers=SimpleNamespace(there=[0]))

        async def stop() -> None:
            self.told.log.append("all workers stop")

        return SimpleNamespace(
            groups=[], training=[], stop=stop, rollout=SimpleNamespace(begin_again=begin_again)
        )


class RunOnFakes(local.RLRun):
    told: Told

    @contextlib.contextmanager
    def start_ray(self) -> Iterator[Any]:
        yield SimpleNamespace(described="nowhere", prepare_end=lambda: None)

    def newest_checkpoint(self, *, required: bool) -> Any:
        step = max(self.told.saved)
        return SimpleNamespace(step=step, progress=self.told.saved[step])

    def _starting(self) -> Any:
        return Starts(self.told)

    async def _built(self, advance: Any, *, again: bool = False) -> Any:
        world = World(self.told, self.start_step)
        roles = replace(world.roles(), observe=self.observe, prompts=self._prepared.train)
        return world, roles

    def _open_groups(self) -> None:
        return None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    (tmp_path / "my.yaml").write_text(controller_fakes.CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "RLRun", RunOnFakes)
    return tmp_path


def launch(monkeypatch: pytest.MonkeyPatch, told: Told, most: int) -> tuple[int, list[int]]:
    """Exit code, and the steps of metrics.jsonl."""
    RunOnFakes.told = told
    monkeypatch.setattr(Restarts, "_saved", lambda _: max(told.saved, default=None))
    code = cli.main(["launch", "my.yaml", "run.steps=4", "run.save_every=2", f"run.max_restarts={most}"])
    records = map(json.loads, Path("out/first/metrics.jsonl").read_text().splitlines())
    return code, [record["step"] for record in records if record["kind"] == "step"]


def test_training_starts_again_from_the_checkpoint_while_the_engines_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(dies_at=4)
    assert launch(monkeypatch, told, most=1) == (0, [1, 2, 3, 4])
    assert told.log == [
        "all workers start",
        "training ends",
        "engines forget",
        "training starts again",
        "all workers stop",
    ]
    steps, prompts = zip(*told.trained, strict=True)
    assert steps == (1, 2, 3, 4, 3, 4) and prompts[2:4] == prompts[4:], "the same prompts once more"
    said = " ".join(capsys.readouterr().out.split())
    assert f"trainer and reward start again from step 2, 0 further starts without a new one: {DIED}" in said
    assert "1 engine stays" in said
    assert "trainer rank 0 died" in Path("out/first/why.before.txt").read_text()
    assert not Path("out/first/why.txt").exists()


def test_if_that_fails_the_whole_run_starts_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(dies_at=4, breaks=True)
    assert launch(monkeypatch, told, most=1) == (0, [1, 2, 3, 4])
    first = ["all workers start", "training ends", "engines forget", "all workers stop"]
    assert told.log == [*first, "all workers start", "all workers stop"]
    said = " ".join(capsys.readouterr().out.split())
    assert "that failed, and the whole run starts again: WorkerError: no room" in said


def test_without_a_start_left_the_error_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(dies_at=3)
    assert launch(monkeypatch, told, most=0) == (1, [1, 2])
    assert told.log == ["all workers start", "training ends", "all workers stop"]
