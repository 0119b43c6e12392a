"""Takes the tokens of a few trajectories of a loaded batch for a person to read, with what training computed
of each.

Shape letters: U trained tokens of the whole batch, N trajectories.
"""

from collections.abc import Sequence

import numpy as np

from hybridrl.algorithms.base import Reduce
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.types import InspectedTrajectory

_COLUMNS = ("rollout_logp", "old_logp", "advantage")


def inspect(
    loaded: LoadedBatch, reduce: Reduce, rows: Sequence[int], *, num_suspicious: int
) -> list[InspectedTrajectory]:
    """The given trajectories, and those on which trainer and engine disagree most. *Collective* over
    data-parallel ranks.

    Args:
        rows: indices in the batch.
        num_suspicious: how many of the latter, whether or not `rows` has them.

    Returns:
        Each trajectory once, in the order of `rows`, then the others.
    """
    columns = {name: loaded.whole(name, reduce).cpu().numpy() for name in _COLUMNS if name in loaded.columns}
    worst = _most_suspicious(loaded, columns, num_suspicious)
    return [
        _inspected(loaded, columns, row, suspicious=row in worst) for row in dict.fromkeys([*rows, *worst])
    ]


def _most_suspicious(loaded: LoadedBatch, columns: dict[str, np.ndarray], count: int) -> list[int]:
    """Trajectories with the largest difference of a log-probability, the largest first. None if the two are
    not both known."""
    computed = sorted(_computed(loaded))
    if "old_logp" not in columns or not computed:
        return []
    at, row = (found.cpu().numpy() for found in loaded.packed.trained(computed))
    gap_N = np.zeros(len(loaded.reward_N))
    np.maximum.at(gap_N, row, np.abs(columns["old_logp"][at] - columns["rollout_logp"][at]))
    return [int(n) for n in np.argsort(-gap_N, kind="stable")[:count] if gap_N[n] > 0]


def _inspected(
    loaded: LoadedBatch, columns: dict[str, np.ndarray], row: int, *, suspicious: bool
) -> InspectedTrajectory:
    batch = loaded.batch
    block = batch.blocks[int(batch.block_N[row])]
    tokens = block.row(int(batch.row_N[row]))
    at = loaded.packed.trained([row])[0].cpu().numpy()
    own = {name: tuple(map(float, column_U[at])) for name, column_U in columns.items()}
    if row not in _computed(loaded):
        own.pop("old_logp", None)
    return InspectedTrajectory(
        index=row,
        token_ids=tuple(map(int, block.token_T[tokens])),
        prompt_tokens=int(block.prompt_tokens_N[int(batch.row_N[row])]),
        trained=tuple(map(bool, block.loss_mask_T[tokens])),
        rollout_logp=own.get("rollout_logp"),
        old_logp=own.get("old_logp"),
        advantage=own.get("advantage"),
        suspicious=suspicious,
    )


def _computed(loaded: LoadedBatch) -> set[int]:
    """Trajectories whose log-probabilities were computed: the others change neither loss nor gradient."""
    rows = (rank for minibatch in loaded.first_epoch for rank in minibatch.rows)
    return {n for rank in rows for microbatch in rank for n in microbatch}
