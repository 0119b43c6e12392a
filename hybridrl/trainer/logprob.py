"""Log-probability of given tokens, and entropy, from logits that are sharded over ranks by vocabulary.

It takes two small all-reduces: one for the maximum, one for three sums. One tensor of the size of the logits
is kept for the backward pass.
Shape letters: R rows, V vocabulary entries of this rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from hybridrl.trainer.kernels.reference import gradient


def logprob_and_entropy(
    logits_RV: Tensor, target_R: Tensor, *, first: int, temperature: float, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(logits / temperature), and that distribution's entropy.

    *Collective* over `group`; every rank gets the same result.

    Args:
        logits_RV: logits of this rank's vocabulary entries, without padding; V may be 0.
        target_R: int64, token ids of the whole vocabulary.
        first: token id of this rank's first entry.

    Returns:
        float32 [R] each, both differentiable.
    """
    return _LogProbAndEntropy.apply(logits_RV, target_R, first, temperature, group)


class _LogProbAndEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_RV: Tensor,
        target_R: Tensor,
        first: int,
        temperature: float,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        num_entries = logits_RV.shape[1]
        score_RV = logits_RV.float() if temperature == 1.0 else logits_RV.float() / temperature
        largest_R = score_RV.amax(1) if num_entries else score_RV.new_full((len(score_RV),), -torch.inf)
        dist.all_reduce(largest_R, dist.ReduceOp.MAX, group)
        score_RV = score_RV - largest_R.unsqueeze(1)
        here_R = (target_R >= first) & (target_R < first + num_entries)
        entry_R1 = torch.where(here_R, target_R - first, 0).unsqueeze(1)

        exp_RV = score_RV.exp()
        sums_3R = score_RV.new_zeros(3, len(score_RV))  # sum of exp, sum of exp * score, the target's score
        sums_3R[0] = exp_RV.sum(1)
        sums_3R[1] = exp_RV.mul_(score_RV).sum(1)
        if num_entries:
            sums_3R[2] = score_RV.gather(1, entry_R1).squeeze(1) * here_R
        del exp_RV
        dist.all_reduce(sums_3R, dist.ReduceOp.SUM, group)

        log_sum_R = sums_3R[0].log()
        logp_R = sums_3R[2] - log_sum_R
        entropy_R = log_sum_R - sums_3R[1] / sums_3R[0]
        ctx.save_for_backward(score_RV.sub_(log_sum_R.unsqueeze(1)), target_R, entropy_R)
        ctx.first, ctx.temperature, ctx.dtype = first, temperature, logits_RV.dtype
        ctx.set_materialize_grads(False)
        return logp_R, entropy_R

    @staticmethod
    def backward(
        ctx: Any, grad_logp_R: Tensor | None, grad_entropy_R: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        log_prob_RV, target_R, entropy_R = ctx.saved_tensors
        if grad_logp_R is None:
            grad_logp_R = torch.zeros_like(entropy_R)
        grad_RV = gradient(log_prob_RV, target_R, entropy_R, grad_logp_R, grad_entropy_R, ctx.first)
        return grad_RV.div_(ctx.temperature).to(ctx.dtype), None, None, None, None
