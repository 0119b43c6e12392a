"""The common base of roles: a backend, the loaded batch, optimizer steps, checkpoints."""

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
from hybridrl.trainer.places import Microbatch


class Role:
    """A model or several on one rank of a group. Every method is *collective*."""

    def __init__(self, backend: Backend, *, async_save: bool = False, goes_on_unsaved: bool = False) -> None:
        self.backend, self._mesh = backend, backend.mesh
        self._saver = checkpoint.Saver(backend, background=async_save, forgiving=goes_on_unsaved)
        self._trained: dict[str, Trained] = {}
        """The parts of a checkpoint: trained models with their optimizers, by name."""

        self._offload = Offload(())
        self._loaded: LoadedBatch

    def column(self, name: str) -> np.ndarray | None:
        """A whole column of the loaded batch, float32 [U] over the trained tokens of all ranks; None on all
        but the last pipeline stage."""
        with self.backend.scope():
            last = self._mesh.is_last_stage
            return self._loaded.whole(name, self._mesh).cpu().numpy() if last else None

    def save(
        self,
        folder: Path,
        facts: Mapping[str, Any] | None = None,
        export: Path | None = None,
        more: Callable[[Path], None] | None = None,
    ) -> None:
        """Write model, optimizer, schedule and random state into a new folder.

        With async_save this returns early and training may go on; the checkpoint is complete after
        `finish_saving`.

        Args:
            facts: additional entries of the commit record; JSON.
            export: folder to which the policy is exported afterwards in Hugging Face format.
            more: called on rank 0 to write further files into the folder that it is given.

        Raises:
            CheckpointError: the folder exists.
            CheckpointError, ResourceError, DeadlineError: this or the previous checkpoint could not be
                written.
        """
        source = self.backend.setup.model_folder
        then = partial(export_checkpoint, folder, export, source, verified=True) if export else None
        with self.backend.scope(), self._offload.at_home():
            self._saver.save(folder, self._trained, {**(facts or {}), **self._facts()}, then, more)

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            CheckpointError, ResourceError, DeadlineError: it could not be written.
        """
        self._saver.finish()

    def restore(self, folder: Path) -> list[str]:
        """Continue from a checkpoint as if there had been no interruption.

        Returns:
            Notes for the user, if the checkpoint was written on another parallel layout.

        Raises:
            CheckpointError: the checkpoint is incomplete, damaged, or of another model, or other parameters
                were trained.
        """
        with self.backend.scope(), self._offload.at_home():
            facts, notes = checkpoint.restore(folder, self.backend, self._trained)
        self._resume(facts)
        return notes

    def _facts(self) -> dict[str, Any]:
        """Additional entries of the commit record."""
        return {}

    def _resume(self, facts: Mapping[str, Any]) -> None:
        """Restore the state that `_facts` put into the commit record."""

    def close(self) -> None:
        """Leave the process groups. The models cannot be used afterwards."""
        self.backend.close()


def optimizer_step(
    part: Trained,
    mesh: Mesh,
    microbatches: Sequence[Microbatch],
    loss: Callable[[Microbatch, Tensor], tuple[Tensor, Metrics]],
    *,
    name: str,
    where: str,
) -> tuple[dict[str, float], float, float]:
    """Take one optimizer step. *Collective*.

    Args:
        name: name of the metric that holds the loss.
        where: the step, for the error message.

    Returns:
        Metrics, gradient norm, learning rate.

    Raises:
        NonFiniteError: loss or gradient norm is inf or NaN; the weights are unchanged.
    """
    model, optimizer = part
    optimizer.zero_gradients()
    metrics = mesh.combine(model.accumulate_gradients(microbatches, loss))
    value, grad_norm = metrics.get(name, 0.0), optimizer.gradient_norm()
    if not (math.isfinite(grad_norm) and math.isfinite(value)):
        raise NonFiniteError(f"{name} {value}, gradient norm {grad_norm}", where=where)
    return metrics, grad_norm, optimizer.step(grad_norm)


def offload(choice: str, parts: Iterable[Trained], weights: Iterable[Tensor] = ()) -> Offload:
    """Offload of the tensors that the weight swap does not read, as actor.offload says.

    Args:
        parts: trained models, whose optimizer state and gradients may be offloaded.
        weights: weights that may be offloaded.
    """
    parts = list(parts)
    state = [tensor for _, optimizer in parts for tensor in optimizer.tensors().values()]
    if choice != "all":
        return Offload(state if choice == "optimizer" else ())
    return Offload([*state, *weights], [buffer for model, _ in parts for buffer in model.gradient_buffers()])
