"""Log-probabilities of a few tokens besides the sampled one at every place: those an engine or a teacher held
likeliest.

Their logits are products with single rows of the output layer, so nothing of the size of the vocabulary is
computed again. The sampled token's log-probability is known by then, and carries the sum over the vocabulary.
Shape letters: P predicted tokens of a microbatch, R rows, H hidden size, V vocabulary entries of this rank, K
tokens of a head, J = K + 1 with the sampled token first.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from hybridrl.models.vision import NEVER
from hybridrl.trainer.linear_logprob import LOGITS_AT_ONCE, Shard

_VALUES_AT_ONCE = 2**24
"""Largest number of gathered values of the output layer that are held at once."""


def head_gaps(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    target_R: Tensor,
    head_RK: Tensor,
    shard: Shard,
    *,
    temperature: float,
) -> Tensor:
    """Log-probability of each token of a head minus that of the target, under softmax(logits / temperature).

    *Collective* over the shard's group; every rank gets the same result. As in linear_logprob, the gradient
    of hidden_RH is this rank's share only.

    Args:
        weight_VH: this rank's weight, with its padding.
        target_R, head_RK: int64, token ids of the whole vocabulary.

    Returns:
        float32 [R, K], differentiable.
    """
    token_RJ = torch.cat([target_R.unsqueeze(1), head_RK], dim=1)
    logits_RJ = _TokenLogits.apply(hidden_RH, weight_VH, token_RJ, shard)
    if (cap := shard.soft_cap) is not None:
        logits_RJ = cap * torch.tanh(logits_RJ / cap)
    for token in shard.banned:
        logits_RJ = logits_RJ.masked_fill(token_RJ == token, NEVER)
    return (logits_RJ[:, 1:] - logits_RJ[:, :1]) / temperature


def likeliest(hidden_RH: Tensor, weight_VH: Tensor, count: int, shard: Shard) -> Tensor:
    """Ids of the tokens with the largest logits in each row, largest first; int64 [R, count], no gradients.

    *Collective* over the shard's group; every rank gets the same result.

    Args:
        count: at most the entries of the whole vocabulary.
    """
    with torch.no_grad():
        value_RC, token_RC = _likeliest_here(hidden_RH, weight_VH, count, shard)
        values = [torch.empty_like(value_RC) for _ in range(shard.group.size())]
        tokens = [torch.empty_like(token_RC) for _ in values]
        dist.all_gather(values, value_RC, shard.group)
        dist.all_gather(tokens, token_RC, shard.group)
        _, place_RC = torch.cat(values, dim=1).topk(count, dim=1)
        return torch.cat(tokens, dim=1).gather(1, place_RC)


def _likeliest_here(hidden_RH: Tensor, weight_VH: Tensor, count: int, shard: Shard) -> tuple[Tensor, Tensor]:
    """The largest logits among this rank's entries and their tokens, [R, count] each; -inf where this rank
    has fewer."""
    value_RC = hidden_RH.new_full((len(hidden_RH), count), -torch.inf, dtype=torch.float32)
    token_RC = torch.zeros(value_RC.shape, dtype=torch.int64, device=hidden_RH.device)
    step = max(1, LOGITS_AT_ONCE // max(1, len(hidden_RH)))
    for at in range(0, shard.num_entries, step):
        part = slice(at, min(at + step, shard.num_entries))
        logits_RV = shard.logits(hidden_RH, weight_VH, part).float()
        entry_V = torch.arange(part.start, part.stop, device=hidden_RH.device) + shard.first
        value_RC, place_RC = torch.cat([value_RC, logits_RV], dim=1).topk(count, dim=1)
        token_RC = torch.cat([token_RC, entry_V.expand(len(hidden_RH), -1)], dim=1).gather(1, place_RC)
    return value_RC, token_RC


class _TokenLogits(Function):
    """Plain logits of given tokens, float32 [R, J]."""

    @staticmethod
    def forward(ctx: Any, hidden_RH: Tensor, weight_VH: Tensor, token_RJ: Tensor, shard: Shard) -> Tensor:
        here_RJ = (token_RJ >= shard.first) & (token_RJ < shard.first + shard.num_entries)
        entry_RJ = torch.where(here_RJ, token_RJ - shard.first, 0)
        logits_RJ = torch.zeros(token_RJ.shape, device=hidden_RH.device)
        if shard.num_entries:
            for part in _parts(token_RJ, weight_VH):
                rows_RJH = weight_VH[entry_RJ[part]].float()
                logits_RJ[part] = (rows_RJH @ hidden_RH[part].float().unsqueeze(2)).squeeze(2)
        logits_RJ *= here_RJ
        dist.all_reduce(logits_RJ, dist.ReduceOp.SUM, shard.group)
        ctx.save_for_backward(hidden_RH, weight_VH, entry_RJ, here_RJ)
        return logits_RJ

    @staticmethod
    def backward(ctx: Any, grad_RJ: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RH, weight_VH, entry_RJ, here_RJ = ctx.saved_tensors
        grad_RJ = grad_RJ * here_RJ
        grad_hidden_RH = torch.zeros_like(hidden_RH, dtype=torch.float32)
        entries, place_RJ = torch.unique(entry_RJ, return_inverse=True)
        # fp32, because a frequent token gets its gradient from many places.
        sums = torch.zeros(len(entries), weight_VH.shape[1], device=weight_VH.device)
        for part in _parts(entry_RJ, weight_VH) if len(weight_VH) else ():
            of_part = grad_RJ[part].unsqueeze(2)
            grad_hidden_RH[part] = (weight_VH[entry_RJ[part]].float() * of_part).sum(1)
            values = (of_part * hidden_RH[part].float().unsqueeze(1)).flatten(0, 1)
            sums.index_add_(0, place_RJ[part].flatten(), values)
        grad_weight_VH = torch.zeros_like(weight_VH)
        if len(weight_VH):
            grad_weight_VH[entries] = sums.to(weight_VH.dtype)
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH, None, None


def _parts(token_RJ: Tensor, weight_VH: Tensor) -> Iterator[slice]:
    """Slices of the rows, of which one has at most _VALUES_AT_ONCE gathered values."""
    rows = max(1, _VALUES_AT_ONCE // (token_RJ.shape[1] * weight_VH.shape[1]))
    return (slice(at, at + rows) for at in range(0, len(token_RJ), rows))
