"""An objective on a random batch, for what has to be known of it before a run.

Shape letter: T packed tokens.
"""

import torch
from torch import Tensor

from hybridrl.algorithms.base import Known, OneRank, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch


def loss_and_gradient(objective: Objective, batch: RaggedBatch, totals: Totals) -> tuple[Tensor, Tensor]:
    """Loss of a batch, or of a part of one, and its gradient by the log-probabilities, [T].

    Args:
        totals: denominators, those of the whole batch.
    """
    columns, advantage_T = {n: batch.columns[n] for n in objective.columns}, batch.columns["advantage"]
    if objective.prepares:
        known = Known(0, batch.reward_N, batch.group_N, advantage_T, batch.tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    logp_T = batch.columns["logp"].clone().requires_grad_()
    total, _ = objective(logp_T, None, columns, advantage_T, batch.tokens, totals)
    gradient_T = torch.autograd.grad(total, logp_T, allow_unused=True, materialize_grads=True)[0]
    return total.detach(), gradient_T
