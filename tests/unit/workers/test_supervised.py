"""What ranks that learn from examples tell the driver."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridrl.config.cluster import ClusterConfig
from hybridrl.trainer.checkpoints import Keep
from hybridrl.workers import supervised_trainer
from hybridrl.workers.supervised_trainer import RaySupervised, SupervisedWorker


class Ranks:
    """Two ranks in this process, called as a group of workers is."""

    def __init__(self) -> None:
        kind: Any = SupervisedWorker
        self.ranks = [kind.__ray_metadata__.modified_class(None, 1) for _ in range(2)]

    async def all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        return [getattr(rank, method)(*args) for rank in self.ranks]


def test_what_a_checkpoint_of_another_layout_means_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(restore=lambda folder: [f"{folder} was made with TP2"])
    monkeypatch.setattr(supervised_trainer, "Supervised", lambda setup, num_steps: model)
    ranks: Any = Ranks()
    trainer = RaySupervised(ranks, ClusterConfig(), Path("checkpoints"), Keep(1))
    assert asyncio.run(trainer.build(Path("step_3"), 3)) == ["step_3 was made with TP2"]
    assert asyncio.run(trainer.build(None, 0)) == []
