"""Runs an estimator that needs only scalars on the controller; one that needs token columns runs on the
trainer ranks. Columns that nobody computes are refused before the run.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.base import TOKEN_COLUMNS, AdvantageEstimator, argument
from hybridrl.batch import Batch
from hybridrl.errors import ConfigError


def _reward_parts(batch: Batch) -> Tensor:
    names = sorted({name for t in batch.trajectories for name in t.reward_parts})
    return torch.tensor([[t.reward_parts.get(name, 0.0) for name in names] for t in batch.trajectories])


CONTROLLER_COLUMNS: dict[str, Callable[[Batch], Tensor]] = {
    "length": lambda batch: torch.from_numpy(batch.trained_N),
    "prompt_length": lambda batch: torch.tensor([t.prompt_tokens for t in batch.trajectories]),
    "truncated": lambda batch: torch.from_numpy(np.array([t.finish == "length" for t in batch.trajectories])),
    "reward_parts": _reward_parts,
}
"""What the controller knows of every trajectory."""

TRAINER_COLUMNS = frozenset({"rollout_logp", "old_logp", "ref_logp", "old_entropy", "length"})
"""What trainer ranks know."""


def refuse_unprovided(estimator: AdvantageEstimator) -> None:
    """
    Raises:
        ConfigError: the estimator needs a column that no part of a run computes.
    """
    known = TRAINER_COLUMNS if estimator.needs & TOKEN_COLUMNS else CONTROLLER_COLUMNS.keys()
    missing = sorted(estimator.needs - known)
    if missing:
        raise ConfigError(
            f"the estimator needs {', '.join(missing)}, which no part of a run computes yet",
            where="algorithm.estimator",
            fix="choose one that needs less; `hybridrl algo list` shows what each needs",
        )


def add_advantage(batch: Batch, estimator: AdvantageEstimator) -> None:
    """Set batch.advantage_N if scalars are enough; leave it None for the trainer ranks otherwise."""
    if estimator.needs & TOKEN_COLUMNS:
        return
    columns = {argument(name): CONTROLLER_COLUMNS[name](batch) for name in sorted(estimator.needs)}
    reward_N, group_N = torch.from_numpy(batch.reward_N), torch.from_numpy(batch.group_N)
    advantage_N = estimator(reward_N=reward_N, group_N=group_N, **columns)
    assert isinstance(advantage_N, Tensor)
    batch.advantage_N = advantage_N.numpy()
