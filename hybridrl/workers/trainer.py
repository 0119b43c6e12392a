"""One Megatron rank per actor, and the PolicyTrainer role over all of them.

Every method of TrainerWorker except `pid` and those of the swap (connect, plan_fields, write_weights) is
collective: RayTrainer calls it on all ranks, in the same order.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import CheckpointError, VersionError
from hybridrl.reshard.buckets import Bucket, BucketWriter
from hybridrl.reshard.swap import Engine, SwapWriter, SwapWritten
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import SharedTensor, attach
from hybridrl.trainer import committed
from hybridrl.trainer.setup import TrainerSetup
from hybridrl.types import PolicyVersion, StepReport


@ray.remote(max_restarts=0)
class TrainerWorker:
    def __init__(self, setup: TrainerSetup) -> None:
        self._setup = setup

    def pid(self) -> int:
        return os.getpid()

    def build(self, checkpoint: Path | None) -> None:
        """Build the model with the weights of the model folder, then those of `checkpoint` if given."""
        # Imported here: the controller's process, which makes these actors, is spared the seconds.
        from hybridrl.trainer.megatron.policy import MegatronPolicy

        self._policy = MegatronPolicy(self._setup)
        if checkpoint is not None:
            self._policy.restore(checkpoint)

    def load(self, batch: RankBatch, *blocks: TokenBlock) -> dict[str, float]:
        """Take a batch; its blocks are top-level arguments so that Ray maps them from its store instead of
        copying."""
        batch.blocks.extend(blocks)
        return self._policy.load(batch)

    def step(self, index: int) -> StepReport:
        return self._policy.step(index)

    def connect(self, engines: list[Engine], lost: frozenset[int]) -> str:
        """Map the engines' parameters and plan the swap without the lost ranks; returns the plan's hash."""
        self._writer = SwapWriter(self._policy.layout, self._setup.rank, engines, lost=lost)
        return self._writer.plan_hash

    def plan_fields(self) -> dict[str, str]:
        """What the plan follows from."""
        return self._writer.plan_fields

    def write_weights(self) -> SwapWritten:
        """Write this rank's share of the weights into the engines' parameters."""
        return self._writer.write(self._policy.tensors())

    def weight_dtypes(self) -> set[torch.dtype]:
        return {tensor.dtype for tensor in self._policy.tensors().values()}

    def open_buckets(self, buckets: list[Bucket]) -> SharedTensor:
        """On one rank: a buffer for the largest bucket, shared with the others and with the engines."""
        self._buffer = torch.empty(max(bucket.nbytes for bucket in buckets), dtype=torch.uint8)
        return shm.export(self._buffer)

    def plan_buckets(self, buckets: list[Bucket], buffer: SharedTensor) -> str:
        """Map the buffer and plan what this rank writes of each bucket; returns the plan's hash."""
        self._buckets = BucketWriter(self._policy.layout, self._setup.rank, buckets, attach(buffer))
        return self._buckets.plan_hash

    def write_bucket(self, index: int) -> int:
        """Write this rank's share of a bucket; returns its bytes."""
        return self._buckets.write(index, self._policy.tensors())

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        self._policy.save(folder, {"progress": progress})

    def export(self, folder: Path) -> None:
        self._policy.export(folder)


class RayTrainer:
    """PolicyTrainer over a group of TrainerWorkers."""

    def __init__(self, workers: WorkerGroup, cluster: ClusterConfig, folder: Path, keep: int) -> None:
        """
        Args:
            folder: of the run's checkpoints, one sub-folder a step.
            keep: how many of them stay.
        """
        self.workers, self.version = workers, 0
        self._cluster, self._folder, self._keep = cluster, folder, keep
        self._loaded: tuple[PolicyVersion, int] | None = (
            None  # version that the loaded batch makes, its last minibatch
        )

    async def build(self, checkpoint: Path | None, version: PolicyVersion) -> None:
        await self.workers.all("build", checkpoint, timeout_s=self._cluster.start_timeout_s)
        self.version = version

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        self._loaded = (batch.step, minibatches[-1].index)
        scalars = ray.put(
            RankBatch(
                batch.step,
                [],
                batch.block_N,
                batch.row_N,
                batch.group_N,
                batch.reward_N,
                batch.advantage_N,
                tuple(minibatches),
                batch.scalars,
            )
        )
        return (await self._all("load", scalars, *batch.blocks))[0]

    async def step(self, index: int) -> StepReport:
        report = (await self._all("step", index))[0]
        if self._loaded is None or report.version != self._loaded[0]:
            raise VersionError(
                f"trainer stepped version {report.version}, the loaded batch makes {self._loaded}"
            )
        if index == self._loaded[1]:
            self.version = report.version
        return report

    async def save(self, step: int, progress: Mapping[str, Any]) -> None:
        await self._all("save", self._folder / f"step_{step:06d}", progress)
        for old in whole_checkpoints(self._folder)[: -self._keep]:
            shutil.rmtree(old.folder)

    async def export(self, folder: Path) -> None:
        await self._all("export", folder)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self.workers.all(method, *args, timeout_s=self._cluster.step_timeout_s)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint of a run."""

    step: int
    folder: Path
    progress: Mapping[str, Any]
    """Of the controller: where the prompt source stands, what shaping and estimator remember."""


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run, oldest first. What a kill left half-written is passed over."""
    found = []
    for path in sorted(folder.glob("step_*")):
        with contextlib.suppress(CheckpointError, ValueError):
            facts = committed.read(path)
            found.append(Checkpoint(int(path.name.removeprefix("step_")), path, facts["progress"]))
    return found


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The one to resume from."""
    return next(reversed(whole_checkpoints(folder)), None)
