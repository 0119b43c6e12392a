"""A run ends when a checkpoint cannot be written, or says so and goes on, as run.on_save_error says."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from checkpoint_values import write_checkpoint

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import DeadlineError
from hybridrl.saved_groups import SavedGroups
from hybridrl.trainer.checkpoints import Keep, named
from hybridrl.workers.trainer import RayTrainer

FULL = OSError(errno.ENOSPC, "No space left on device")


class Ranks:
    """Ranks that write a checkpoint, or raise."""

    def __init__(self, *ends: Exception | None) -> None:
        self._ends = list(ends)

    async def all(self, method: str, *args: Any) -> None:
        if method == "save":
            if (end := self._ends.pop(0)) is not None:
                raise end
            write_checkpoint(args[0], {"progress": {}})


def trainer(folder: Path, ranks: Ranks, warned: list[str] | None) -> RayTrainer:
    def warn(kind: str, text: str) -> None:
        assert warned is not None
        warned.append(text)

    group: Any = ranks
    return RayTrainer(group, ClusterConfig(), folder, Keep(2), warn=None if warned is None else warn)


def save(trainer: RayTrainer, *steps: int) -> None:
    async def each() -> None:
        for step in steps:
            await trainer.save(step, {}, SavedGroups())

    asyncio.run(each())


def test_it_goes_on_and_names_the_last_checkpoint(tmp_path: Path) -> None:
    warned: list[str] = []
    save(trainer(tmp_path, Ranks(FULL, None, FULL, None), warned), 1, 2, 3, 4)
    assert warned == [
        "the checkpoint of step 1 was not written, there is none yet: [Errno 28] No space left on device",
        "the checkpoint of step 3 was not written, that of step 2 is the last one: "
        "[Errno 28] No space left on device",
    ]
    assert named(tmp_path, 2).exists() and named(tmp_path, 4).exists()


def test_it_ends_unless_it_may_go_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        save(trainer(tmp_path, Ranks(FULL), None), 1)


def test_ranks_that_are_late_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError):
        save(trainer(tmp_path, Ranks(DeadlineError("late")), []), 1)


def test_the_last_checkpoint_must_be_there(tmp_path: Path) -> None:
    made = trainer(tmp_path, Ranks(FULL, None), [])
    save(made, 1)
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(made.finish_saving())
    save(made, 2)
    asyncio.run(made.finish_saving())
