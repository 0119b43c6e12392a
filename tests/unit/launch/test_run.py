"""What every start of a run does around its loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import parse_as
from hybridrl.config.sft_rm import SFTConfig
from hybridrl.launch.run import Run
from hybridrl.launch.stop import StopRequest
from hybridrl.models.spec import read
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.observe.terminal import Terminal


class Trainer:
    """Exports as the real one does: never over a folder that is there."""

    version = 0

    async def export(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "version").write_text(str(self.version))


class ShortRun(Run[Any, Any]):
    """Its loop sets the version to the last step."""

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def prepare(self, progress: Any) -> None: ...

    def observer(self, resume_step: int | None) -> Any: ...

    def start_ray(self) -> Any: ...

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[Any, Any]]:
        trainer = Trainer()
        yield trainer, trainer

    async def train(self, roles: Any) -> None:
        roles.version = self.cfg.run.steps


class Finished:
    """Keeps what a run was finished with."""

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __init__(self) -> None:
        self.stopped_by: list[str | None] = []
        self.following: list[Any] = []

    def finish(self, files: Any, following: Any, facts: Any, stopped_by: str | None) -> None:
        self.stopped_by.append(stopped_by)
        self.following.append(following)


class InterruptedRun(ShortRun):
    """Its loop is interrupted, before the first step or in it."""

    begins = True

    async def train(self, roles: Any) -> None:
        if self.begins:
            self.stop.begin()
        raise KeyboardInterrupt


class InterruptedStart(InterruptedRun):
    begins = False

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[Any, Any]]:
        raise KeyboardInterrupt
        yield


def short_run(kind: type[ShortRun], folder: Path, steps: int, resume: Any = "never") -> ShortRun:
    text = f"model: m\ndata: {{train: a.jsonl}}\nrun: {{name: a, folder: {folder}, steps: {steps}}}\n"
    loaded, stop = parse_as(SFTConfig, text, "a.yaml"), StopRequest(lambda text: None)
    run = kind(loaded, loaded.config, read(folder / "model"), Terminal(), stop, resume=resume)
    run.observe = Finished()
    return run


def test_a_run_that_goes_on_after_its_end_exports_its_model_again(tmp_path: Path) -> None:
    qwen3_arithmetic(tmp_path / "model", 0)
    for steps in (2, 2, 4):
        asyncio.run(short_run(ShortRun, tmp_path, steps, "required").play())
        assert (tmp_path / "a" / "export" / "version").read_text() == str(steps)


@pytest.mark.parametrize(
    ("kind", "stopped_by"), [(ShortRun, [None]), (InterruptedRun, ["SIGINT"]), (InterruptedStart, [])]
)
def test_an_interrupted_run_is_finished_too_if_training_had_begun(
    tmp_path: Path, kind: type[ShortRun], stopped_by: list[str | None]
) -> None:
    qwen3_arithmetic(tmp_path / "model", 0)
    run = short_run(kind, tmp_path, 2)
    run._opened = contextlib.ExitStack()
    with pytest.raises(KeyboardInterrupt) if kind is not ShortRun else contextlib.nullcontext():
        with contextlib.ExitStack() as left:
            left.push(run.__exit__)
            asyncio.run(run.play())
            run.finish()
    assert run.observe.stopped_by == stopped_by


def test_the_end_of_a_run_proposes_no_config_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proposing(ShortRun):
        following = (("hybridrl launch configs/a.yaml", "more"), ("hybridrl config explain", "keys"))

    monkeypatch.chdir(tmp_path)
    qwen3_arithmetic(tmp_path / "model", 0)
    run = short_run(Proposing, tmp_path, 2)
    run.finish()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.yaml").touch()
    run.finish()
    assert [len(following) for following in run.observe.following] == [1, 2]
