"""Writes step bundles (trainer/bundles.py) around the optimizer steps of a run.

Who waits for whom: the trainer ranks write their state before the update of a bundle that was asked for; for
one about an error they do so after the optimizer step, which has changed no weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from hybridrl.batch import Batch, Minibatch, TokenBlock
from hybridrl.config.bundle import BundleConfig
from hybridrl.errors import CheckpointError, DeadlineError, NonFiniteError, ResourceError
from hybridrl.saved_groups import SavedGroups
from hybridrl.trainer import bundles
from hybridrl.types import InspectedTrajectory, PolicyVersion, StepReport
from hybridrl.workers.trainer import RayTrainer

_FAILURES = (OSError, CheckpointError, ResourceError, DeadlineError)
"""Errors of a disk, after which a run goes on without the bundle."""


@dataclass(slots=True)
class _Open:
    """The batch whose steps are being taken."""

    batch: Batch
    minibatches: Sequence[Minibatch]
    is_asked_for: bool
    loaded: Mapping[str, float] = field(default_factory=dict)
    steps: list[Mapping[str, Any]] = field(default_factory=list)


class BundlingTrainer:
    """A PolicyTrainer that writes bundles."""

    def __init__(
        self,
        inner: RayTrainer,
        choice: BundleConfig,
        folder: Path,
        config: Path,
        warn: Callable[[str, str], None],
    ) -> None:
        """
        Args:
            folder: folder of the run's bundles.
            config: file with the run's config, which a bundle keeps.
            warn: called with a kind and a text if a bundle cannot be written.
        """
        self._inner, self._choice, self._folder, self._config = inner, choice, folder, config
        self._warn = warn
        self._open: _Open

    @property
    def version(self) -> PolicyVersion:
        return self._inner.version

    async def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[InspectedTrajectory]:
        return await self._inner.inspect(rows, num_suspicious)

    async def save(self, step: int, progress: Mapping[str, Any], groups: SavedGroups) -> None:
        await self._inner.save(step, progress, groups)

    async def finish_saving(self) -> None:
        await self._inner.finish_saving()

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        every = self._choice.every
        self._open = _Open(batch, minibatches, bool(every) and batch.step % every == 0)
        if self._open.is_asked_for:
            self._open.is_asked_for = await self._try(self._save_state)
        found = await self._inner.load(batch, minibatches)
        self._open.loaded = found
        return found

    async def step(self, index: int) -> StepReport:
        now = self._open
        try:
            report = await self._inner.step(index)
        except NonFiniteError as error:
            now.steps.append({"error": error.what})
            if await self._write_failed(index, error.what, given=index > 0):
                raise NonFiniteError(
                    error.what, where=error.where, fix=f"hybridrl replay {self._name} takes it again"
                ) from error
            raise
        now.steps.append(
            {n: getattr(report, n) for n in ("loss", "grad_norm", "lr")} | {"metrics": dict(report.metrics)}
        )
        if report.metrics.get("actor/skipped"):
            await self._write_failed(index, "the step was skipped", given=True)
        elif now.is_asked_for and index == now.minibatches[-1].index:
            await self._try(lambda: self._write("", 0, given=False))
        return report

    @property
    def _name(self) -> Path:
        return self._folder / f"step_{self._open.batch.step:06d}"

    async def _write_failed(self, index: int, why: str, *, given: bool) -> bool:
        """Write the bundle about an optimizer step that is not finite, if the config wants one.

        Args:
            given: weights have changed since the batch was loaded, the policy's or the critic's.
        """
        if self._open.is_asked_for:  # its state is that of before the first step
            return await self._try(lambda: self._write(why, 0, given=False))
        if not self._choice.on_error:
            return False

        async def write() -> None:
            await self._save_state()
            self._open.steps = self._open.steps[-1:]
            await self._write(why, index, given=given)

        return await self._try(write)

    async def _try(self, write: Callable[[], Any]) -> bool:
        """Whether something could be written; a run does not end because it could not."""
        try:
            await write()
        except _FAILURES as error:
            self._warn(f"bundle of step {self._open.batch.step}", f"{self._name} was not written: {error}")
            return False
        return True

    async def _save_state(self) -> None:
        unfinished = self._unfinished
        bundles.begin(unfinished)
        await self._inner.workers.all("save_state", unfinished / bundles.STATE)

    @property
    def _unfinished(self) -> Path:
        return self._name.with_name(f"{self._name.name}.tmp")

    async def _write(self, why: str, first: int, *, given: bool) -> None:
        now, ranks = self._open, await self._inner.workers.all("recorded")
        columns: dict[str, np.ndarray] = next((found for found, _ in ranks if found), {})
        blocks = tuple(map(_block, now.batch.blocks))
        bundle = bundles.Bundle(
            why=why,
            batch=replace(now.batch.for_ranks(now.minibatches), blocks=blocks),
            score_N=now.batch.score_N,
            prompts=tuple(group.index for group in now.batch.groups),
            first=first,
            columns_are_given=given,
            found=bundles.Found(
                now.loaded, tuple(now.steps), columns, tuple(weights for _, weights in ranks)
            ),
        )
        bundles.write(self._unfinished, self._name, bundle, self._config.read_text("utf-8"))
        bundles.delete_old(self._folder, self._choice.keep)


def _block(block: Any) -> TokenBlock:
    return ray.get(block) if isinstance(block, ray.ObjectRef) else block
