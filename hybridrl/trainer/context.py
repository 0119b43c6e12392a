"""Context parallelism: the tokens of every sequence are partitioned over ranks, with equal work for all.

A sequence is split into 2 * cp chunks. Rank r has chunk r and chunk 2 * cp - 1 - r (zigzag): under a causal
mask the first is cheap and the second expensive.
Shape letters: T packed tokens of this rank, B sequences of equal length, L that length, O tokens that this
rank predicts, P those of all ranks, H heads, D size of a head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from hybridrl.trainer.places import Microbatch


def gather_predicted(microbatch: Microbatch, own_O: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather the outputs for all predicted tokens of a microbatch, [P, ...], from the ranks that have them.

    *Collective* over the context-parallel ranks `group`. Differentiable, provided that all ranks compute the
    same from the result.
    """
    if group.size() == 1:
        return own_O
    return gather_rows(own_O, microbatch.most_predicted, microbatch.from_P, group)


def own_predicted(microbatch: Microbatch, value_P: Tensor, rank: int) -> Tensor:
    """The rows of a column of all predicted tokens that a context-parallel rank predicts, [O, ...]: the
    inverse of `gather_predicted`.

    Args:
        rank: the one that the microbatch was packed for.
    """
    place_P = microbatch.from_P - rank * microbatch.most_predicted
    own_P = (place_P >= 0) & (place_P < microbatch.most_predicted)
    value_O = value_P.new_empty(len(microbatch.target_O), *value_P.shape[1:])
    value_O[place_P[own_P]] = value_P[own_P]
    return value_O


def chunks_of(rank: int, size: int) -> tuple[int, int]:
    """Indices of the two chunks, out of 2 * size, that a rank has of every sequence, in order."""
    return rank, 2 * size - 1 - rank


def gather_tokens(own_T: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather the tokens of all ranks, [cp, T, ...]. *Collective* over the group, forward and backward.

    In the backward pass each rank gets the sum of all ranks' gradients of its part.
    """
    return _GatherTokens.apply(own_T, group)


def in_order(partitioned: Tensor, count: int, length: int) -> Tensor:
    """Whole sequences [B, L, ...] from the partitioned tokens [cp, B * L / cp, ...] of all ranks."""
    size = len(partitioned)
    chunks = partitioned.view(size, count, 2, length // (2 * size), *partitioned.shape[2:])
    ordered = torch.cat([chunks[:, :, 0], chunks[:, :, 1].flip(0)])
    return ordered.transpose(0, 1).reshape(count, length, *partitioned.shape[2:])


def in_chunks(whole: Tensor, size: int) -> Tensor:
    """The inverse of `in_order`: [cp, B * L / cp, ...] from whole sequences [B, L, ...]."""
    count, length = whole.shape[:2]
    chunks = whole.reshape(count, 2 * size, length // (2 * size), *whole.shape[2:]).transpose(0, 1)
    both = torch.stack([chunks[:size], chunks[size:].flip(0)], dim=2)
    return both.reshape(size, count * length // size, *whole.shape[2:])


def heads_for_tokens(own_THD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Give away all but this rank's heads, and get those of the other ranks' tokens; [cp, T, H / cp, D].

    *Collective* over the group, forward and backward (Ulysses, arXiv:2309.14509).
    """
    num_tokens, heads, size = own_THD.shape
    parts = own_THD.reshape(num_tokens, group.size(), heads // group.size(), size).transpose(0, 1)
    return _AllToAll.apply(parts, group)


def tokens_for_heads(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The inverse of `heads_for_tokens`: [T, H, D] from [cp, T, H / cp, D]."""
    return _AllToAll.apply(part, group).transpose(0, 1).flatten(1, 2)


def gather_rows(own_O: Tensor, most: int, from_P: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather the rows of all ranks in the order of `from_P`, [P, ...]. *Collective* in the forward pass only.

    Every rank must compute the same from the result. Each rank's gradient of its own rows is then whole
    already, and the backward pass communicates nothing.

    Args:
        most: largest number of rows of a rank.
        from_P: int64, rank * most + index of the row on that rank.
    """
    return _GatherRows.apply(own_O, most, from_P, group)


_ALL_GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
"""Newer versions of torch warn of the longer names."""


class _GatherTokens(Function):
    @staticmethod
    def forward(ctx: Any, own_T: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(own_T, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[1:])
        _REDUCE_SCATTER(own, grad.contiguous().flatten(0, 1), group=ctx.group)
        return own, None


class _AllToAll(Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = parts.new_empty(parts.shape)  # empty_like would keep the strides of a transposed view
    dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, own_O: Tensor, most: int, from_P: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(from_P)
        ctx.first, ctx.count = group.rank() * most, len(own_O)
        padded = own_O.new_zeros(most, *own_O.shape[1:])
        padded[: len(own_O)] = own_O
        return _all_gather(padded, group).flatten(0, 1)[from_P]

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None, None]:
        (from_P,) = ctx.saved_tensors
        place_P = from_P - ctx.first
        own_P = (place_P >= 0) & (place_P < ctx.count)
        grad_O = grad_P.new_empty(ctx.count, *grad_P.shape[1:])
        grad_O[place_P[own_P]] = grad_P[own_P]
        return grad_O, None, None, None


def _all_gather(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    found = own.new_empty(group.size() * len(own), *own.shape[1:])
    _ALL_GATHER(found, own.contiguous(), group=group)
    return found.view(group.size(), *own.shape)
