"""Sums, last tokens, discounting and whitening over packed trajectories.

Shape letters: T packed tokens, M trained tokens among them, S trajectories (tokens.num_seqs).
"""

from typing import Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.ratios import log_ratio


def masked(value_T: Tensor, tokens: Tokens) -> Tensor:
    """The column, [T, ...], with 0 and no gradient outside the loss mask, whatever was there (inf, NaN)."""
    mask_T = tokens.mask_T.reshape(-1, *(1 for _ in value_T.shape[1:]))
    return torch.where(mask_T, value_T, torch.zeros_like(value_T))


def sequence_sum(value_T: Tensor, tokens: Tokens) -> Tensor:
    """Sum over the trained tokens of each trajectory that are held here, [S]."""
    return value_T.new_zeros(tokens.num_seqs).index_add(0, tokens.seq_T, masked(value_T, tokens))


def sequence_length(tokens: Tokens, dtype: torch.dtype) -> Tensor:
    """Number of trained tokens of each trajectory that are held here, [S]."""
    return sequence_sum(torch.ones_like(tokens.seq_T, dtype=dtype), tokens)


def sequence_mean(value_T: Tensor, tokens: Tokens) -> Tensor:
    """Mean over the trained tokens of each trajectory, [S]; 0 for a trajectory without any."""
    return sequence_sum(value_T, tokens) / sequence_length(tokens, value_T.dtype).clamp(min=1)


def sequence_max(value_T: Tensor, tokens: Tokens) -> Tensor:
    """Largest value over the trained tokens of each trajectory, [S]; -inf for a trajectory without any."""
    lowest_S = value_T.new_full((tokens.num_seqs,), -torch.inf)
    return lowest_S.scatter_reduce(0, tokens.seq_T, value_T.where(tokens.mask_T, -torch.inf), "amax")


def spread(value_S: Tensor, tokens: Tokens) -> Tensor:
    """A column whose sum over the trained tokens of each trajectory is that trajectory's value, [T]."""
    length_S = sequence_length(tokens, value_S.dtype).clamp(min=1)
    return (value_S / length_S)[tokens.seq_T]


def squared_log_ratio(
    logp_T: Tensor, other_logp_T: Tensor, tokens: Tokens, over: Literal["answer", "token"]
) -> Tensor:
    """The square of each token's log ratio, [T]; or a column whose sum over the trained tokens of an answer
    is the square of the answer's log ratio."""
    moved_T = log_ratio(logp_T, other_logp_T)
    if over == "token":
        return moved_T.square()
    return spread(sequence_sum(moved_T, tokens).square(), tokens)


MAX_LOG_SEQUENCE_RATIO = 10.0
"""Clamp of the log ratio of an answer, against overflow."""

Level = Literal["token", "sequence"]
"""Ratio of each token, or one ratio for the whole answer: the geometric mean of its tokens' ratios."""


def importance_ratio(logp_T: Tensor, old_logp_T: Tensor, tokens: Tokens, level: Level) -> Tensor:
    """exp(logp - old_logp) of each token or of its answer, [T]. The gradient reaches every token by itself in
    both cases (GSPO-token, arXiv:2507.18071): where a loss has one advantage per answer, its gradient is that
    of the loss of the answer's ratio."""
    if level == "token":
        return log_ratio(logp_T, old_logp_T).exp()
    mean_S = sequence_mean(logp_T.detach() - old_logp_T, tokens)
    return (logp_T - logp_T.detach() + mean_S[tokens.seq_T]).clamp(max=MAX_LOG_SEQUENCE_RATIO).exp()


def at_last_token(value_S: Tensor, tokens: Tokens) -> Tensor:
    """A column, [T], that holds each trajectory's value at its last trained token, and 0 at all other
    tokens."""
    at_M = torch.nonzero(tokens.mask_T).flatten()
    seq_M = tokens.seq_T[at_M]
    is_last_M = torch.ones_like(seq_M, dtype=torch.bool)
    is_last_M[:-1] = seq_M[1:] != seq_M[:-1]
    column_T = value_S.new_zeros(len(tokens.seq_T))
    column_T[at_M[is_last_M]] = value_S[seq_M[is_last_M]]
    return column_T


def position(tokens: Tokens) -> Tensor:
    """Number of trained tokens before each trained token in its trajectory, int64 [T]; 0 outside the mask."""
    count_T = torch.cumsum(tokens.mask_T, 0)
    starts_T = torch.ones_like(tokens.mask_T)
    starts_T[1:] = tokens.seq_T[1:] != tokens.seq_T[:-1]
    before_T = torch.cummax(torch.where(starts_T, count_T - tokens.mask_T.long(), 0), 0).values
    return torch.where(tokens.mask_T, count_T - 1 - before_T, 0)


def next_token(value_T: Tensor, tokens: Tokens) -> Tensor:
    """The value at the next trained token of the trajectory, [T]; 0 at the last one and outside the mask."""
    at_M = torch.nonzero(tokens.mask_T).flatten()
    seq_M, next_M = tokens.seq_T[at_M], torch.zeros_like(value_T[at_M])
    next_M[:-1] = torch.where(seq_M[1:] == seq_M[:-1], value_T[at_M][1:], 0)
    return torch.zeros_like(value_T).index_put((at_M,), next_M)


def running_sum(value_T: Tensor, tokens: Tokens) -> Tensor:
    """Sum over the trained tokens of the trajectory up to and with this one, [T]; 0 outside the mask."""
    # Not a cumulative sum over the pack: that would carry the rounding of one trajectory into the next.
    total_T = sequence_sum(value_T, tokens)[tokens.seq_T]
    after_T = discounted_sum(value_T, 1.0, tokens) - masked(value_T, tokens)
    return masked(total_T - after_T, tokens)


def discounted_sum(value_T: Tensor, discount: float | Tensor, tokens: Tokens) -> Tensor:
    """y[t] = value[t] + discount * y[next trained token of the trajectory], [T]; 0 outside the loss mask.

    Args:
        discount: one number, or a column that is constant within a trajectory.

    It is computed by doubling: after k rounds y covers 2**k tokens, so it takes log2(longest) vector
    operations and no padding.
    """
    at_M = torch.nonzero(tokens.mask_T).flatten()
    seq_M, sum_M = tokens.seq_T[at_M], value_T[at_M]
    power_M = torch.as_tensor(discount, dtype=value_T.dtype, device=value_T.device).expand_as(value_T)[at_M]
    longest = int(torch.bincount(seq_M).max()) if len(seq_M) else 0
    reach = 1
    while reach < longest:
        same_M = seq_M[reach:] == seq_M[:-reach]
        step_M = torch.where(same_M, power_M[:-reach] * sum_M[reach:], 0)
        sum_M = torch.cat([sum_M[:-reach] + step_M, sum_M[-reach:]])
        power_M = power_M.square()
        reach *= 2
    return torch.zeros_like(value_T).index_put((at_M,), sum_M)


def whiten(value_X: Tensor, weight_X: Tensor, reduce: Reduce, *, eps: float, bessel: bool = True) -> Tensor:
    """(value - mean) / sqrt(var + eps), with weighted mean and variance over all ranks.

    Args:
        weight_X: how often each value counts: a loss mask, or the trained tokens of a trajectory.
        bessel: divide the squared deviations by count - 1.

    Returns:
        A tensor of the shape and dtype of `value_X`; values of weight 0 are shifted and scaled too.
    """
    # Sums in float64: the result must not depend on how the batch was split over ranks.
    weight_X = weight_X.double()
    value64_X = value_X.double()
    total, count = reduce.sum(torch.stack([(value64_X * weight_X).sum(), weight_X.sum()]))
    centred_X = value64_X - total / count.clamp(min=1)
    squares = reduce.sum((centred_X.square() * weight_X).sum())
    variance = squares / (count - int(bessel)).clamp(min=1)
    return (centred_X * (variance + eps).rsqrt()).to(value_X.dtype)
