"""Whether trajectories of advantage 0 can be left out of the passes of an optimizer step.

They can if they change neither the loss nor the gradient: there is no KL divergence, entropy bonus or
statistic over the batch that they are part of. That is tried on random batches, not declared, so it holds for
losses and corrections from outside too. Shape letters: N trajectories, T packed tokens.
"""

import torch

from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch, ragged_batch
from hybridrl.algorithms.trial import loss_and_gradient
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import HybridRLError

_GROUPS = (4,) * 6
_MAX_RESPONSE_TOKENS = 16
_SEEDS = range(4)
_RELATIVE = 1e-9


def zero_advantages_move_nothing(algorithm: AlgorithmConfig) -> bool:
    """Whether loss and gradient of a minibatch are the same without its trajectories of advantage 0, if its
    denominators stay. False also if an objective does not take the batches that it is tried on."""
    needs = Needs.of(algorithm)
    bonus = algorithm.entropy_coefficient or algorithm.entropy_target
    if needs.models or bonus or algorithm.kl.coefficient:
        return False
    objective = Objective(algorithm, max_response_tokens=_MAX_RESPONSE_TOKENS)
    if getattr(objective.loss, "makes", None):  # a statistic over the batch, which may rarely matter
        return False
    try:
        return all(_unmoved(objective, _batch(seed, moved)) for seed in _SEEDS for moved in (True, False))
    except (ValueError, HybridRLError):
        return False


def _batch(seed: int, moved: bool) -> RaggedBatch:
    """A batch in which two groups have advantage 0, of a policy that has moved or not."""
    batch = ragged_batch(seed, sizes=_GROUPS)
    flat_T = batch.group_N[batch.seq_T] < 2
    batch.columns["advantage"] = torch.where(flat_T, 0.0, batch.columns["advantage"])
    if not moved:
        batch.columns["logp"] = batch.columns["old_logp"]
    return batch


def _unmoved(objective: Objective, batch: RaggedBatch) -> bool:
    rest = batch.rows(torch.nonzero(batch.group_N >= 2).flatten().tolist())
    kept_T = batch.group_N[batch.seq_T] >= 2
    loss, gradient_TJ = loss_and_gradient(objective, batch, batch.totals)
    same, same_TJ = loss_and_gradient(objective, rest, batch.totals)
    expected_TJ = torch.zeros_like(gradient_TJ)
    expected_TJ[kept_T] = same_TJ
    limit = _RELATIVE * float(gradient_TJ.abs().max())
    return abs(float(loss - same)) <= _RELATIVE and float((gradient_TJ - expected_TJ).abs().max()) <= limit
