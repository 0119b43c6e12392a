"""Context parallelism: the tokens of every sequence, dealt over ranks so that all have equal work.

A sequence is cut into 2 * cp pieces; rank r has piece r and piece 2 * cp - 1 - r, a cheap one under a causal
mask and a dear one (zigzag).
Shape letters: T packed tokens of this rank, B sequences of equal length, L that length, O trained tokens that
this rank predicts, R those of all ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.autograd import Function

from hybridrl.trainer.packing import Microbatch


def from_context(microbatch: Microbatch, own_O: Tensor) -> Tensor:
    """Outputs for all trained tokens of a microbatch, [R, ...], from those that each rank has.

    *Collective* over context-parallel ranks; differentiable, if all of them go on to compute the same.
    """
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return own_O
    return gather_rows(own_O, microbatch.most_predicted, microbatch.from_R, group)


def chunks_of(rank: int, size: int) -> tuple[int, int]:
    """The pieces of every sequence that a rank has, in order, out of 2 * size."""
    return rank, 2 * size - 1 - rank


def gather_tokens(own_T: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What every rank has, [cp, T, ...]. *Collective* over the group, forward and backward: each rank gets
    the sum of all ranks' gradients of its part."""
    return _GatherTokens.apply(own_T, group)


def in_order(partitioned: Tensor, count: int, length: int) -> Tensor:
    """Whole sequences [B, L, ...] from the parts [cp, B * L / cp, ...] that ranks have of them."""
    size = len(partitioned)
    pieces = partitioned.view(size, count, 2, length // (2 * size), *partitioned.shape[2:])
    in_turn = torch.cat([pieces[:, :, 0], pieces[:, :, 1].flip(0)])
    return in_turn.transpose(0, 1).reshape(count, length, *partitioned.shape[2:])


def gather_rows(own_O: Tensor, most: int, from_R: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks in one order, [R, ...]. *Collective* forward; nothing is sent backward.

    Every rank goes on to compute the same from the result, so its part of the gradient is whole already.

    Args:
        most: rows of the rank that has the most.
        from_R: int64, rank * most + place among that rank's rows.
    """
    return _GatherRows.apply(own_O, most, from_R, group)


class _GatherTokens(Function):
    @staticmethod
    def forward(ctx: Any, own_T: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(own_T, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous().flatten(0, 1), group=ctx.group)
        return own, None


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, own_O: Tensor, most: int, from_R: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(from_R)
        ctx.first, ctx.count = group.rank() * most, len(own_O)
        padded = own_O.new_zeros(most, *own_O.shape[1:])
        padded[: len(own_O)] = own_O
        return _all_gather(padded, group).flatten(0, 1)[from_R]

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None, None, None]:
        (from_R,) = ctx.saved_tensors
        place_R = from_R - ctx.first
        own_R = (place_R >= 0) & (place_R < ctx.count)
        grad_O = grad_R.new_empty(ctx.count, *grad_R.shape[1:])
        grad_O[place_R[own_R]] = grad_R[own_R]
        return grad_O, None, None, None


def _all_gather(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    found = own.new_empty(group.size() * len(own), *own.shape[1:])
    dist.all_gather_into_tensor(found, own.contiguous(), group=group)
    return found.view(group.size(), *own.shape)
