"""One trainer rank per actor, and the PolicyTrainer role over all of them.

Every method of TrainerWorker is collective (RayTrainer calls it on all ranks, in the same order), except
`pid` and those of the swap: connect, fixed_parameters, plan_fields, write_weights.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import CheckpointError, ResourceError, VersionError
from hybridrl.faults import Fault
from hybridrl.hosts import cuda, stacks
from hybridrl.reshard.buckets import Bucket, BucketWriter
from hybridrl.reshard.communicator import Rendezvous
from hybridrl.reshard.swap import Engine, SwapWritten
from hybridrl.reshard.topology import Topology
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import SharedTensor, attach
from hybridrl.saved_groups import SavedGroups
from hybridrl.trainer import checkpoints
from hybridrl.trainer import saved_groups as saved_groups_file
from hybridrl.trainer.policy import Policy
from hybridrl.trainer.roles.reward_model import RewardModel
from hybridrl.trainer.setup import PolicySetup, RankSetup
from hybridrl.trainer.store import Mirror
from hybridrl.types import InspectedTrajectory, PolicyVersion, StepReport
from hybridrl.workers.columns import ColumnGroup, RayCritic, column_of
from hybridrl.workers.planted import around_policy
from hybridrl.workers.swap_rank import SwapRank


@ray.remote(max_restarts=0)
class TrainerWorker:
    def __init__(self, setup: PolicySetup, reward_model: RankSetup | None = None) -> None:
        """
        Args:
            reward_model: setup of a reward model that is colocated on these ranks; None if there is none.
        """
        self._setup, self._reward_setup = setup, reward_model
        self._groups_to_keep: Callable[[Path], None] | None = None
        self._faults: Sequence[Fault] = ()

    def pid(self) -> int:
        return stacks.answer()

    def plant(self, faults: Sequence[Fault]) -> None:
        self._faults = faults

    def build(self, checkpoint: Path | None) -> list[str]:
        """Build the models with the weights of their folders, then restore the policy from `checkpoint`.

        Returns:
            Notes for the user about the checkpoint.
        """
        self._policy: Policy = around_policy(Policy(self._setup), self._faults)
        self._swap = SwapRank(self._policy.layout, self._policy.device, self._setup.timeout_s)
        if self._reward_setup is not None:
            self._reward_model = RewardModel(self._policy.backend.sharing(self._reward_setup))
        return [] if checkpoint is None else self._policy.restore(checkpoint)

    def measure(self, batch: RankBatch, *blocks: TokenBlock) -> dict[str, float]:
        """Take a batch. Its blocks are top-level arguments, so that Ray maps them from its store without a
        copy."""
        return self._policy.measure(batch.with_blocks(blocks))

    def scores(self, batch: RankBatch, *blocks: TokenBlock) -> np.ndarray | None:
        """Scores of the colocated reward model."""
        return self._reward_model.scores(batch.with_blocks(blocks))

    def complete(self, names: Sequence[str], *columns: np.ndarray) -> dict[str, float]:
        return self._policy.complete(dict(zip(names, columns, strict=True)))

    def column(self, name: str) -> np.ndarray | None:
        return self._policy.column(name)

    def step(self, index: int) -> StepReport:
        return self._policy.step(index)

    def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[InspectedTrajectory] | None:
        return self._policy.inspect(rows, num_suspicious=num_suspicious)

    def connect(
        self,
        engines: Mapping[int, Engine],
        lost: frozenset[int],
        topology: Topology | None,
        waves: Sequence[Sequence[int]],
        rendezvous: Rendezvous | None = None,
    ) -> str:
        """Map the engines' parameters and plan the swap without the lost ranks; returns the plan's hash.

        With a topology this is *collective*, because ranks send weights to each other. If ranks are lost, no
        process group can be made, and each rank writes only to engines that it reaches.

        Args:
            engines: the engines that are written, by index.
            waves: those that are written together.
            rendezvous: where trainer ranks and receivers meet; None: engines have no receivers.

        Raises:
            SwapError: no rank reaches a part of an engine.
        """
        given = engines, lost, topology, waves, self._policy.fixed, rendezvous
        return self._swap.connect(self._setup.rank, *given)

    def fixed_parameters(self) -> Set[str]:
        """Canonical parameters that no optimizer step changes."""
        return self._policy.fixed

    def plan_fields(self) -> dict[str, str]:
        """The inputs that determine the plan, to explain a disagreement."""
        return self._swap.plan_fields()

    def write_weights(self, wave: int, whole: bool) -> SwapWritten:
        """Write this rank's share of the weights into the parameters of the engines of a wave.

        Args:
            whole: as in SwapWriter.write.
        """
        written = self._swap.write(wave, self._policy.tensors(), whole=whole)
        cuda.release_cached_memory()  # the engine allocates its key-value cache next
        return written

    def weight_dtypes(self) -> set[torch.dtype]:
        return {tensor.dtype for tensor in self._policy.tensors().values()}

    def open_buckets(self, buckets: list[Bucket]) -> SharedTensor:
        """Make a buffer for the largest bucket, shared with other ranks and engines; called on one rank."""
        self._buffer = torch.empty(max(bucket.nbytes for bucket in buckets), dtype=torch.uint8)
        return shm.export(self._buffer)

    def plan_buckets(self, buckets: list[Bucket], buffer: SharedTensor) -> str:
        """Map the buffer and plan what this rank writes of each bucket; returns the plan's hash."""
        self._buckets = BucketWriter(self._policy.layout, self._setup.rank, buckets, attach(buffer))
        return self._buckets.plan_hash

    def write_bucket(self, index: int) -> int:
        """Write this rank's share of a bucket; returns its bytes."""
        tensors = self._policy.tensors()
        names = self._buckets.sources(index)
        written = self._buckets.write(index, {name: tensors[name].cpu() for name in names if name in tensors})
        cuda.release_cached_memory()  # as in write_weights; adapters are merged on the device
        return written

    def keep_groups(self, scalars: Mapping[str, np.ndarray], *blocks: TokenBlock) -> None:
        """Let the next checkpoint contain these groups; called on rank 0."""
        self._groups_to_keep = partial(saved_groups_file.write, scalars=scalars, blocks=blocks)

    def save(self, folder: Path, progress: Mapping[str, Any], export: Path | None) -> None:
        dedicated = "value" in self._setup.remote_columns
        more, self._groups_to_keep = self._groups_to_keep, None
        self._policy.save(folder, {"progress": progress, "critic_apart": dedicated}, export, more)

    def finish_saving(self) -> None:
        self._policy.finish_saving()

    def export(self, folder: Path) -> None:
        self._policy.export(folder)

    def save_state(self, folder: Path) -> None:
        """Write what `save` writes, for a step bundle."""
        self._policy.save(folder)
        self._policy.finish_saving()

    def recorded(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        return self._policy.recorded()


class RayTrainer:
    """Implements PolicyTrainer over a group of TrainerWorkers, and the groups that compute columns for it."""

    def __init__(
        self,
        workers: WorkerGroup,
        cluster: ClusterConfig,
        folder: Path,
        keep: checkpoints.Keep,
        *,
        exports: "Exports | None" = None,
        warn: Callable[[str, str], None] | None = None,
        critic: RayCritic | None = None,
        frozen: ColumnGroup | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """
        Args:
            folder: folder of the run's checkpoints, with one sub-folder per step.
            keep: which checkpoints are kept.
            warn: called with a kind and a text about a checkpoint that cannot be written, and then the run
                goes on. None: that is raised.
            exports: which checkpoints are exported in Hugging Face format; None exports none.
            critic: the critic on dedicated ranks; None if there is none or the actor's ranks hold it.
            frozen: reference and teacher on dedicated ranks; None if there are none or the actor's ranks hold
                them.
            mirror: copies the checkpoints elsewhere; None: nothing does.
        """
        self.workers, self.version, self._mirror = workers, 0, mirror
        self._critic, self._frozen = critic, frozen
        self._column_groups = [group for group in (critic, frozen) if group is not None]
        self._cluster, self._folder, self._keep, self._exports = cluster, folder, keep, exports
        self._warn = warn
        self._unsaved: Exception | None = None
        """Why the last checkpoint was not written, if the run went on without it."""

        self.unchanged = asyncio.Lock()
        """Whoever holds it knows that no optimizer step begins, so that weights can be written to engines."""

        self._is_between = False
        """Whether some of the optimizer steps of a batch are done, so that the weights have no version."""

        self._loaded: tuple[PolicyVersion, int] | None = None
        """Version that training on the loaded batch produces, and the index of its last minibatch."""

    @property
    def groups(self) -> list[WorkerGroup]:
        """All workers that train, or compute columns for training."""
        return [self.workers, *(group.workers for group in self._column_groups)]

    async def build(self, checkpoint: Path | None, version: PolicyVersion) -> list[str]:
        """Build all models.

        Returns:
            Notes for the user about the checkpoint.
        """
        others = [
            *([self._critic.resume(checkpoint)] if self._critic else []),
            *([self._frozen.build()] if self._frozen else []),
        ]
        build = self.workers.all("build", checkpoint, timeout_s=self._cluster.start_timeout_s)
        notes, _ = await asyncio.gather(build, asyncio.gather(*others))
        self.version = version
        return notes[0]

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        self._loaded = (batch.step, minibatches[-1].index)
        scalars = ray.put(batch.for_ranks(minibatches))
        measured, _ = await asyncio.gather(
            self.workers.all("measure", scalars, *batch.blocks),
            asyncio.gather(*(group.load(batch, minibatches) for group in self._column_groups)),
        )
        columns = {name: group.column(name) for group in self._column_groups for name in group.columns}
        completed = await self.workers.all("complete", list(columns), *columns.values())
        if self._critic:
            await self._critic.take(column_of(self.workers, "return"))
        return measured[0] | completed[0]

    def has(self, version: PolicyVersion | None) -> bool:
        """Whether the weights are those of a version."""
        return self.version == version and not self._is_between

    async def step(self, index: int) -> StepReport:
        async with self.unchanged:
            self._is_between = True
            ranks = self.workers.all("step", index)
            reports, of_critic = await asyncio.gather(ranks, self._step_critic(index))
            report: StepReport = reports[0]
            if self._loaded is None or report.version != self._loaded[0]:
                raise VersionError(
                    f"trainer stepped to version {report.version}; the loaded batch and its last minibatch "
                    f"are {self._loaded}"
                )
            if index == self._loaded[1]:
                self.version, self._is_between = report.version, False
        return replace(report, metrics={**report.metrics, **of_critic})

    async def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[InspectedTrajectory]:
        return (await self.workers.all("inspect", rows, num_suspicious))[-1]

    async def save(self, step: int, progress: Mapping[str, Any], groups: SavedGroups) -> None:
        self._unsaved = None
        if self._mirror:
            self._mirror.raise_failure()
        try:
            await self._save(step, progress, groups)
        except _DISK_FAILURES as error:
            if self._warn is None:
                raise
            self._unsaved = error
            saved = checkpoints.whole_checkpoints(self._folder)
            last = f"that of step {saved[-1].step} is the last one" if saved else "there is none yet"
            text = f"the checkpoint of step {step} was not written, {last}: {error}"
            self._warn(f"checkpoint of step {step}", text)

    async def _save(self, step: int, progress: Mapping[str, Any], groups: SavedGroups) -> None:
        folder = checkpoints.named(self._folder, step)
        if groups.columns:
            await self.workers.one(0, "keep_groups", groups.columns, *groups.blocks)
        if self._critic:
            await self._critic.save(folder)
        export = self._exports.folder_of(step) if self._exports else None
        await self.workers.all("save", folder, progress, export)
        checkpoints.delete_old(self._folder, self._keep)

    async def finish_saving(self) -> None:
        if self._unsaved is not None:
            raise self._unsaved
        await self.workers.all("finish_saving")
        if self._critic:
            await self._critic.finish_saving()
        checkpoints.delete_old(self._folder, self._keep)
        if self._mirror:
            await asyncio.to_thread(self._mirror.flush)

    async def export(self, folder: Path) -> None:
        await self.workers.all("export", folder)

    async def _step_critic(self, index: int) -> dict[str, float]:
        return await self._critic.step(index) if self._critic else {}


_DISK_FAILURES = (OSError, CheckpointError, ResourceError)
"""What ranks raise whose disk is full, read-only or gone. They can go on, unlike those that are late."""


@dataclass(frozen=True, slots=True)
class Exports:
    """Exports in Hugging Face format that are made during training."""

    folder: Path
    """Folder with one sub-folder per exported step."""

    every: int
    """Policy updates between two exports."""

    def folder_of(self, step: int) -> Path | None:
        """Folder for the export of a step; None if the step is not exported, or was exported already."""
        folder = self.folder / f"step_{step:06d}"
        return None if step % self.every or folder.exists() else folder
