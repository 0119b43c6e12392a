"""What every start of a run does around its loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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


def test_a_run_that_goes_on_after_its_end_exports_its_model_again(tmp_path: Path) -> None:
    qwen3_arithmetic(tmp_path / "model", 0)
    for steps in (2, 2, 4):
        text = f"model: m\ndata: {{train: a.jsonl}}\nrun: {{name: a, folder: {tmp_path}, steps: {steps}}}\n"
        loaded = parse_as(SFTConfig, text, "a.yaml")
        stop = StopRequest(lambda text: None)
        run = ShortRun(loaded, loaded.config, read(tmp_path / "model"), Terminal(), stop, resume="required")
        asyncio.run(run.play())
        assert (tmp_path / "a" / "export" / "version").read_text() == str(steps)
