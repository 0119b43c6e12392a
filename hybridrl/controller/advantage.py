"""Runs an estimator that needs only scalars on the controller; one that needs token columns runs on the
trainer ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridrl.algorithms.base import AdvantageEstimator
from hybridrl.batch import Batch

SCALAR_COLUMNS: dict[str, Callable[[Batch], Tensor]] = {
    "length": lambda batch: torch.from_numpy(batch.trained_N),
}
"""What the controller knows of every trajectory, by the name that estimators declare."""


def add_advantage(batch: Batch, estimator: AdvantageEstimator) -> None:
    """Set batch.advantage_N if scalars are enough; leave it None for the trainer ranks otherwise."""
    if not estimator.needs <= SCALAR_COLUMNS.keys():
        return
    columns = {f"{name}_N": SCALAR_COLUMNS[name](batch) for name in sorted(estimator.needs)}
    reward_N, group_N = torch.from_numpy(batch.reward_N), torch.from_numpy(batch.group_N)
    batch.advantage_N = estimator(reward_N=reward_N, group_N=group_N, **columns).numpy()
