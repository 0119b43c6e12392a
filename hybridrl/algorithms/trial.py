"""An objective on a random batch, for what has to be known of it before a run.

Shape letters: T packed tokens, J = 1 + K with the K tokens of a head, 1 without.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridrl.algorithms.base import Known, OneRank, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch


def loss_and_gradient(objective: Objective, batch: RaggedBatch, totals: Totals) -> tuple[Tensor, Tensor]:
    """Loss of a batch, or of a part of one, and its gradient as `gradient` gives it, [T, J].

    Args:
        totals: denominators, those of the whole batch.
    """
    columns, advantage_T = {n: batch.columns[n] for n in objective.columns}, batch.columns["advantage"]
    if objective.prepares:
        known = Known(0, batch.reward_N, batch.group_N, advantage_T, batch.tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    inputs = variables(batch.columns["logp"], columns)
    total, _ = objective(inputs[0], None, columns, advantage_T, batch.tokens, totals)
    return total.detach(), gradient(total, inputs)


def variables(logp_T: Tensor, columns: dict[str, Any]) -> list[Tensor]:
    """Copies of what an objective is differentiated by: the policy's log-probabilities of the sampled tokens,
    and of its head, which takes the column's place, if it needs one."""
    inputs = [logp_T.clone().requires_grad_()]
    if "head_logp" in columns:
        columns["head_logp"] = columns["head_logp"].clone().requires_grad_()
        inputs.append(columns["head_logp"])
    return inputs


def gradient(total: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Gradient by `variables`, [T, J]: of the sampled token, then of the tokens of the head."""
    found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return torch.cat([found[0].unsqueeze(1), *found[1:]], dim=1)
