"""What roles have in common: ranks of a backend, the batch that they hold, steps, checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hybridrl.algorithms.base import Metrics
from hybridrl.errors import NonFiniteError
from hybridrl.trainer import checkpoint
from hybridrl.trainer.base import Backend, Trained
from hybridrl.trainer.export import export as export_checkpoint
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.offload import Offload
from hybridrl.trainer.packing import Microbatch


class Role:
    """Every method is *collective*."""

    def __init__(self, backend: Backend, *, async_save: bool = False) -> None:
        self.backend, self._mesh = backend, backend.mesh
        self._saver = checkpoint.Saver(backend, background=async_save)
        self._trained: dict[str, Trained] = {}
        """What a checkpoint holds."""

        self._offload = Offload(())
        self._loaded: LoadedBatch

    def column(self, name: str) -> np.ndarray | None:
        """A column of the tokens of all ranks in the loaded batch, float32 [U]; None except on the last
        pipeline stage."""
        with self.backend.scope():
            last = self._mesh.is_last_stage
            return self._loaded.whole(name, self._mesh).cpu().numpy() if last else None

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None, export: Path | None = None) -> None:
        """Write model, optimizer, schedule and random state into a new folder.

        With async_save it is not there before `finish_saving`, and the training may go on.

        Args:
            facts: what the commit record is to hold besides; JSON.
            export: where the policy goes in Hugging Face format after that.

        Raises:
            CheckpointError: the folder exists.
            CheckpointError, ResourceError, DeadlineError: it, or the one before, could not be written.
        """
        source = self.backend.setup.model_folder
        then = partial(export_checkpoint, folder, export, source, verified=True) if export else None
        with self.backend.scope(), self._offload.at_home():
            self._saver.save(folder, self._trained, {**(facts or {}), **self._facts()}, then)

    def finish_saving(self) -> None:
        """Returns when the last checkpoint is there.

        Raises:
            CheckpointError, ResourceError, DeadlineError: it could not be written.
        """
        self._saver.finish()

    def restore(self, folder: Path) -> list[str]:
        """Continue from a checkpoint as if there had been no interruption.

        Returns:
            What a person is to be told, where the checkpoint was made by ranks of another layout.

        Raises:
            CheckpointError: it is not whole, damaged, or of another model, or something else was trained.
        """
        with self.backend.scope(), self._offload.at_home():
            facts, notes = checkpoint.restore(folder, self.backend, self._trained)
        self._resume(facts)
        return notes

    def _facts(self) -> dict[str, Any]:
        """What a commit record is to hold besides."""
        return {}

    def _resume(self, facts: Mapping[str, Any]) -> None:
        """Take what it holds."""

    def close(self) -> None:
        """Leave the other ranks; the models are of no use afterwards."""
        self.backend.close()


def learn(
    part: Trained,
    mesh: Mesh,
    microbatches: Sequence[Microbatch],
    loss: Callable[[Microbatch, Tensor], tuple[Tensor, Metrics]],
    *,
    name: str,
    where: str,
) -> tuple[dict[str, float], float, float]:
    """One optimizer step. *Collective*.

    Args:
        name: metric that has the loss.

    Returns:
        Metrics, gradient norm, learning rate.

    Raises:
        NonFiniteError: loss or gradient norm is inf or NaN; the weights are as they were.
    """
    model, optimizer = part
    optimizer.zero_gradients()
    metrics = mesh.combine(model.accumulate_gradients(microbatches, loss))
    value, grad_norm = metrics.get(name, 0.0), optimizer.gradient_norm()
    if not (math.isfinite(grad_norm) and math.isfinite(value)):
        raise NonFiniteError(f"{name} {value}, gradient norm {grad_norm}", where=where)
    return metrics, grad_norm, optimizer.step(grad_norm)


def offload(choice: str, parts: Iterable[Trained], weights: Iterable[Tensor] = ()) -> Offload:
    """Of everything that the weight swap does not read, as far as actor.offload says.

    Args:
        parts: models that are trained: their optimizer state and gradients.
        weights: that may leave.
    """
    parts = list(parts)
    state = [tensor for _, optimizer in parts for tensor in optimizer.tensors().values()]
    if choice != "all":
        return Offload(state if choice == "optimizer" else ())
    return Offload([*state, *weights], [buffer for model, _ in parts for buffer in model.gradient_buffers()])
