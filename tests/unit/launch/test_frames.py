"""How far it is from the command line to the optimizer step: frames of ours, read from a traceback."""

import contextlib
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import controller_fakes
import pytest

import hybridrl
from hybridrl import cli
from hybridrl.cluster.group import WorkerGroup
from hybridrl.controller.roles import Roles
from hybridrl.launch import local
from hybridrl.workers.trainer import RayTrainer, TrainerWorker

PACKAGE = Path(hybridrl.__file__).parent


class Stumbled(Exception):
    """Raised where a rank takes its optimizer step."""


async def stumble(index: int) -> None:
    raise Stumbled


class Trainer(RayTrainer):
    """On ranks in this process."""

    async def load(self, batch, minibatches) -> dict[str, float]:
        return {}


class RunOnFakes(local.RLRun):
    """A run whose engines, reward and ranks are in this process; nothing between them is replaced."""

    @contextlib.contextmanager
    def start_ray(self) -> Iterator[None]:
        yield None

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[tuple[RayTrainer, Roles]]:
        rank = SimpleNamespace(step=SimpleNamespace(remote=stumble))
        group = WorkerGroup("trainer", [rank, rank], Path(), timeout_s=30)
        trainer = Trainer(group, self.cfg.cluster, self.files.checkpoints, keep=1)
        yield trainer, replace(controller_fakes.World().roles(), trainer=trainer, observe=self.observe)


def frames(error: BaseException) -> list[str]:
    """Functions in files of the package, the outermost first; a comprehension is no function."""
    found = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [(path, name) for path, name in found if path.is_relative_to(PACKAGE) and name[0] != "<"]
    return [f"{path.relative_to(PACKAGE)}:{name}" for path, name in ours]


def test_an_optimizer_step_is_ten_frames_and_one_remote_call_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    (tmp_path / "my.yaml").write_text(controller_fakes.CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "RLRun", RunOnFakes)
    monkeypatch.setattr(cli, "show_error", errors.append)
    cli.main(["launch", "my.yaml"])
    (stumbled,) = errors
    assert isinstance(stumbled, Stumbled), stumbled
    here = frames(stumbled)
    assert (here[0], here[-1]) == ("cli/__init__.py:main", "cluster/group.py:all")

    rank = object.__new__(TrainerWorker.__ray_metadata__.modified_class)
    rank._policy = SimpleNamespace(step=lambda index: 1 // 0)
    with pytest.raises(ZeroDivisionError) as caught:
        rank.step(0)
    there = [*frames(caught.value), "the step of the policy"]
    assert there[0] == "workers/trainer.py:step"
    assert len(here + there) <= 10, "\n".join(here + there)
