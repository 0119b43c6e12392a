"""Log-probability and entropy of tokens from hidden states, fused with the output layer.

The logits of the whole vocabulary are never materialised. The vocabulary is sharded over ranks, and each rank
computes its shard in chunks, once in the forward and again in the backward pass. That costs one more product
with the output layer, and saves every tensor of the size of the logits.
Shape letters: R rows, H hidden size, V vocabulary entries of this rank, C entries of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from hybridrl.models.vision import NEVER
from hybridrl.trainer.kernels import reference
from hybridrl.trainer.logprob import logprob_and_entropy

LOGITS_AT_ONCE = 2**24
"""Largest number of logits held at once. The logits of a microbatch with at most this many are kept for the
backward pass; others are computed in chunks, and again in the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The vocabulary entries of the output layer that this rank holds."""

    first: int
    """Token id of this rank's first entry."""

    num_entries: int
    """Entries of this rank without padding; the weight may have more rows than this."""

    group: dist.ProcessGroup
    """Tensor-parallel ranks over which the vocabulary is sharded."""

    soft_cap: float | None = None
    """Logits x become cap * tanh(x / cap); None leaves them as they are."""

    banned: Sequence[int] = ()
    """Token ids that cannot be sampled, of this rank or of others."""

    def logits(self, hidden_RH: Tensor, weight_VH: Tensor, part: slice) -> Tensor:
        """Logits of a chunk of the entries, [R, C]."""
        logits_RC, cap = hidden_RH @ weight_VH[part].T, self.soft_cap
        if cap is not None:
            logits_RC.div_(cap).tanh_().mul_(cap)
        return self.without_banned(logits_RC, part.start)

    def without_banned(self, logits_RC: Tensor, start: int = 0) -> Tensor:
        """The logits of entries from `start` on; those of banned tokens become NEVER, without a gradient."""
        columns = [token - self.first - start for token in self.banned]
        columns = [column for column in columns if 0 <= column < logits_RC.shape[1]]
        if not columns:
            return logits_RC
        return logits_RC.index_fill(1, torch.tensor(columns, device=logits_RC.device), NEVER)

    def slope(self, logits_RC: Tensor) -> Tensor | float:
        """Derivative of the capped logits with respect to the plain ones."""
        return 1.0 if self.soft_cap is None else 1 - (logits_RC / self.soft_cap).square()


def output_logprob(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    target_R: Tensor,
    shard: Shard,
    *,
    temperature: float,
    logits: Callable[[], Tensor],
) -> tuple[Tensor, Tensor]:
    """Same as `linear_logprob`, with whole logits where LOGITS_AT_ONCE allows them.

    Args:
        weight_VH: this rank's weight with its padding; every rank of the group has as many rows.
        logits: the logits of all of this rank's entries, [R, V] without padding.
    """
    if len(hidden_RH) * len(weight_VH) <= LOGITS_AT_ONCE:
        return logprob_and_entropy(
            logits(), target_R, first=shard.first, temperature=temperature, group=shard.group
        )
    chunk = max(1, LOGITS_AT_ONCE // len(hidden_RH))
    return linear_logprob(hidden_RH, weight_VH, target_R, shard, temperature=temperature, chunk=chunk)


def linear_logprob(
    hidden_RH: Tensor, weight_VH: Tensor, target_R: Tensor, shard: Shard, *, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and its entropy.

    *Collective* over the shard's group; every rank gets the same result. The gradient of hidden_RH is only
    this rank's share: the caller sums it over ranks (copy_to_tensor_model_parallel_region).

    Args:
        target_R: int64, token ids of the whole vocabulary.
        chunk: vocabulary entries computed at a time; R x chunk logits are held.

    Returns:
        float32 [R] each, both differentiable.
    """
    return _LinearLogprob.apply(hidden_RH, weight_VH, target_R, shard, temperature, chunk)


class _LinearLogprob(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        target_R: Tensor,
        shard: Shard,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(hidden_RH)
        state_4R = reference.start(len(hidden_RH), hidden_RH.device)
        for part in _chunks(shard.num_entries, chunk):
            logits_RC = shard.logits(hidden_RH, weight_VH, part)
            kernels.take(state_4R, logits_RC, target_R, shard.first + part.start, temperature)
        largest_R = state_4R[0].clone()
        dist.all_reduce(largest_R, dist.ReduceOp.MAX, shard.group)
        reference.move(state_4R, largest_R)
        sums_3R = state_4R[1:]
        dist.all_reduce(sums_3R, dist.ReduceOp.SUM, shard.group)

        log_sum_R = largest_R + sums_3R[0].log()
        logp_R = sums_3R[2] - log_sum_R
        entropy_R = sums_3R[0].log() - sums_3R[1] / sums_3R[0]
        ctx.save_for_backward(hidden_RH, weight_VH, target_R, log_sum_R, entropy_R)
        ctx.shard, ctx.temperature, ctx.chunk = shard, temperature, chunk
        ctx.set_materialize_grads(False)
        return logp_R, entropy_R

    @staticmethod
    def backward(
        ctx: Any, grad_logp_R: Tensor | None, grad_entropy_R: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_RH, weight_VH, target_R, log_sum_R, entropy_R = ctx.saved_tensors
        grads = [torch.zeros_like(entropy_R) if g is None else g for g in (grad_logp_R, grad_entropy_R)]
        kernels = kernels_for(hidden_RH)
        grad_hidden_RH = torch.zeros_like(hidden_RH, dtype=torch.float32)
        grad_weight_VH = torch.zeros_like(weight_VH)
        for part in _chunks(ctx.shard.num_entries, ctx.chunk):
            logits_RC = ctx.shard.logits(hidden_RH, weight_VH, part)
            slope_RC = ctx.shard.slope(logits_RC)
            grad_RC = slope_RC * kernels.turn_into_gradient(
                logits_RC,
                target_R,
                log_sum_R,
                entropy_R,
                *grads,
                ctx.shard.first + part.start,
                ctx.temperature,
            )
            grad_hidden_RH += grad_RC @ weight_VH[part]
            grad_weight_VH[part] = grad_RC.T @ hidden_RH
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH, None, None, None, None


def kernels_for(tensor: Tensor) -> ModuleType:
    if not tensor.is_cuda:
        return reference
    from hybridrl.trainer.kernels import fused

    return fused


def _chunks(num_entries: int, chunk: int) -> Iterator[slice]:
    return (slice(at, min(at + chunk, num_entries)) for at in range(0, num_entries, chunk))
