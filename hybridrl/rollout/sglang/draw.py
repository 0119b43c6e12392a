"""Sampling a token a row from a counter: a draw depends on the request's seed and the token's position only.

SGLang's sampler has one generator a process, so an answer depends on which requests happen to run together
and on everything sampled before; a resumed run could not repeat it. (Its seeded sampler needs GPU kernels,
and hashes every token of the vocabulary where one number a row is enough.)

Shape letters: B rows, V vocabulary.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
_FRACTION_BITS = 48
"""Of the uniform number: fine enough for any vocabulary; its product with a total stays below the total."""


def draw(weight_BV: Tensor, seed_B: Tensor, position_B: Tensor) -> Tensor:
    """One column per row, with probability proportional to its weight.

    Args:
        weight_BV: non-negative; a row need not sum to one.
        seed_B, position_B: int64; the same pair draws the same column from the same weights.

    Returns:
        int64 [B]; never a column of weight 0.
    """
    cumulative_BV = weight_BV.cumsum(dim=-1, dtype=torch.float64)
    threshold_B1 = uniform(seed_B, position_B)[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True).flatten()


def uniform(seed_B: Tensor, position_B: Tensor) -> Tensor:
    """float64 [B] in [0, 1), independent over seeds and positions for all that a sampler can tell."""
    bits_B = _mixed(_mixed(seed_B + _GOLDEN) + position_B * _GOLDEN)
    return _shifted(bits_B, 64 - _FRACTION_BITS).double() * 2.0**-_FRACTION_BITS


def truncated(prob_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor | None) -> Tensor:
    """What top-k, top-p and min-p leave of the distribution: [B, V], 0 where a token is left out.

    Columns stay in their order, so a row that keeps all of them draws as it does alone: SGLang takes this way
    for a whole batch when one request needs it, or when requests have joined.

    A token stays if fewer than top_k tokens are likelier, if those have at most top_p together, and if it
    has at least min_p times the probability of the likeliest.
    """
    weight_BV, token_BV = prob_BV.sort(dim=-1, descending=True)
    rank_V = torch.arange(weight_BV.shape[-1], device=weight_BV.device)
    likelier_BV = weight_BV.cumsum(dim=-1) - weight_BV
    beyond_p_BV = (likelier_BV > top_p_B[:, None]) & (top_p_B[:, None] < 1)  # sums may round to above 1
    left_out_BV = (rank_V >= top_k_B[:, None]) | beyond_p_BV
    if min_p_B is not None:
        left_out_BV |= weight_BV < weight_BV[:, :1] * min_p_B[:, None]
    return torch.empty_like(prob_BV).scatter_(1, token_BV, weight_BV.masked_fill(left_out_BV, 0.0))


def _mixed(x_B: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014); int64 products wrap around as uint64 ones do."""
    x_B = (x_B ^ _shifted(x_B, 30)) * -0x40A7B892E31B1A47
    x_B = (x_B ^ _shifted(x_B, 27)) * -0x6B2FB644ECCEEE15
    return x_B ^ _shifted(x_B, 31)


def _shifted(x_B: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; int64's own is arithmetic."""
    return (x_B >> bits) & ((1 << (64 - bits)) - 1)
