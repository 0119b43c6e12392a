"""Selections over a whole batch that are the same on every split over ranks: by threshold, never by position.

Shape letters: T packed tokens held here, N trajectories of the batch, B bins.
"""

from typing import Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.groups import group_max, group_min
from hybridrl.algorithms.sequences import masked, position

_BINS = 1 << 16


def token_covariance(advantage_T: Tensor, logp_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
    """(advantage - mean)(logp - mean), [T], with means over the trained tokens of all ranks; 0 outside the
    mask. *Collective*."""
    both_2T = torch.stack([masked(advantage_T, tokens), masked(logp_T, tokens)]).double()
    count = reduce.sum(tokens.mask_T.sum()).clamp(min=1)
    centred_2T = both_2T - (reduce.sum(both_2T.sum(1)) / count).unsqueeze(1)
    return masked(centred_2T.prod(0).to(logp_T.dtype), tokens)


def largest_share(value_T: Tensor, share: float, tokens: Tokens, reduce: Reduce) -> Tensor:
    """A mask, bool [T]: the given share of the trained tokens, those with the largest values, at least one;
    ties at the threshold are all included.

    *Collective*.
    """
    num_tokens = int(reduce.sum(tokens.mask_T.sum()))
    if num_tokens == 0:
        return torch.zeros_like(tokens.mask_T)
    key_T = _order_key(value_T)
    return (
        key_T >= _kth_largest(key_T[tokens.mask_T], max(int(share * num_tokens), 1), reduce)
    ) & tokens.mask_T


def smallest_with_mean(value_T: Tensor, bound: float, tokens: Tokens, reduce: Reduce) -> Tensor:
    """A mask, bool [T]: as many trained tokens as possible, smallest values first, so that their mean is at
    most `bound`.

    Values must not be negative. *Collective*: a binary search over the number of tokens that are kept.
    """
    key_T = _order_key(value_T)
    num_tokens = int(reduce.sum(tokens.mask_T.sum()))
    most, fewest = num_tokens, 0
    while fewest < most:
        count = (most + fewest + 1) // 2
        kept_T = _smallest(key_T, count, num_tokens, tokens, reduce)
        total, number = reduce.sum(torch.stack([value_T[kept_T].double().sum(), kept_T.sum().double()]))
        if total <= bound * number:
            fewest = count
        else:
            most = count - 1
    return _smallest(key_T, fewest, num_tokens, tokens, reduce)


def _smallest(key_T: Tensor, count: int, num_tokens: int, tokens: Tokens, reduce: Reduce) -> Tensor:
    """The trained tokens with the `count` smallest values; values that tie at the border are left out."""
    if count == num_tokens:
        return tokens.mask_T
    return (key_T < _kth_largest(key_T[tokens.mask_T], num_tokens - count, reduce)) & tokens.mask_T


def _order_key(value_T: Tensor) -> Tensor:
    """int64 keys in [0, 2**32), [T], in the same order as the float32 values."""
    bits_T = value_T.float().view(torch.int32).to(torch.int64)
    return torch.where(bits_T < 0, -1 - (bits_T & 0x7FFFFFFF), bits_T) + (1 << 31)


def _kth_largest(key_M: Tensor, k: int, reduce: Reduce) -> int:
    """The exact k-th largest key, k from 1, by two histograms over all ranks: of the upper and of the lower
    16 bits."""
    high = _bin_of_kth(key_M // _BINS, k, reduce)
    rest = k - int(reduce.sum((key_M // _BINS > high).sum()))
    low = _bin_of_kth(key_M[key_M // _BINS == high] % _BINS, rest, reduce)
    return high * _BINS + low


def _bin_of_kth(bin_M: Tensor, k: int, reduce: Reduce) -> int:
    count_B = reduce.sum(torch.bincount(bin_M, minlength=_BINS))
    from_top_B = torch.cumsum(count_B.flip(0), 0)
    return _BINS - 1 - int((from_top_B < k).sum())


def random_per_token(seed: int, step: int, tokens: Tokens) -> Tensor:
    """Uniform numbers in [0, 1), float32 [T], that depend only on seed, step and the token's place in the
    batch, not on its rank."""
    mixed_T = _mix(tokens.seq_T + _mix(torch.tensor(seed * 1_000_003 + step, device=tokens.seq_T.device)))
    mixed_T = _mix(mixed_T + position(tokens))
    return ((mixed_T >> 40) & 0xFFFFFF).float() / (1 << 24)


def _mix(value: Tensor) -> Tensor:
    """A bijection of int64 that scatters neighbours: splitmix64, Steele et al. 2014."""
    value = value + -7046029254386353131
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def draw_copies(
    reward_N: Tensor,
    group_N: Tensor,
    way: Literal["pow", "max_min", "max_random"],
    *,
    power: float,
    seed: tuple[int, int],
) -> Tensor:
    """How often each trajectory is drawn, int64 [N]: in N draws (pow), or once for two chosen ones of each
    group."""
    draw = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    if way == "pow":
        weight_N = reward_N.abs().double().cpu() ** power
        weight_N = weight_N if weight_N.sum() > 0 else torch.ones_like(weight_N)
        drawn = torch.multinomial(weight_N, len(weight_N), replacement=True, generator=draw)
        return torch.bincount(drawn, minlength=len(weight_N)).to(reward_N.device)
    random_N = torch.rand(len(reward_N), generator=draw).to(reward_N.device)
    best_N = _first_where(reward_N == group_max(reward_N, group_N), random_N, group_N)
    if way == "max_min":
        other_N = _first_where((reward_N == group_min(reward_N, group_N)) & ~best_N, random_N, group_N)
    else:
        other_N = _first_where(~best_N, random_N, group_N)
    return (best_N | other_N).long()


def _first_where(candidate_N: Tensor, random_N: Tensor, group_N: Tensor) -> Tensor:
    """A mask, bool [N]: one candidate of each group, the one with the largest random number."""
    score_N = random_N.where(candidate_N, -1)
    return candidate_N & (score_N == group_max(score_N, group_N))
