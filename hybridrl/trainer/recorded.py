"""The token columns of a loaded batch in the order of its trajectories, which no parallel layout changes.

Shape letters: N trajectories, U trained tokens of all blocks, V trained tokens of the trajectories in order.
"""

from collections.abc import Mapping

import numpy as np
import torch

from hybridrl.batch import RankBatch
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh

POSITION = "position"
"""Name of the column with the place of each trained token in its trajectory."""


def columns(loaded: LoadedBatch, mesh: Mesh) -> dict[str, np.ndarray]:
    """All token columns, [V, ...]. *Collective* over the ranks of the last pipeline stage."""
    at_V, _ = loaded.packed.trained(range(len(loaded.reward_N)))
    found = {name: loaded.whole(name, mesh)[at_V].cpu().numpy() for name in sorted(loaded.columns)}
    return {POSITION: _positions(loaded.batch), **found}


def give(loaded: LoadedBatch, given: Mapping[str, np.ndarray]) -> None:
    """Replace token columns by those of `columns`."""
    for name, column_U in at_tokens(loaded, given).items():
        if name in loaded.columns:
            loaded.put(name, torch.tensor(column_U, device=loaded.held_H.device))


def at_tokens(loaded: LoadedBatch, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns [U, ...], 0 at tokens that no trajectory of the batch has, from columns [V, ...]."""
    at_V = loaded.packed.trained(range(len(loaded.reward_N)))[0].cpu().numpy()
    found: dict[str, np.ndarray] = {}
    for name, values in given.items():
        found[name] = np.zeros((loaded.packed.num_trained, *values.shape[1:]), values.dtype)
        found[name][at_V] = values
    return found


def _positions(batch: RankBatch) -> np.ndarray:
    """Place of each trained token in its trajectory, int32 [V]."""
    masks = [
        batch.blocks[block].loss_mask_T[batch.blocks[block].row(row)]
        for block, row in zip(batch.block_N, batch.row_N, strict=True)
    ]
    return np.concatenate([np.flatnonzero(mask) for mask in masks]).astype(np.int32)
