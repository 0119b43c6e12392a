"""Counter-based sampling of one token per row: a draw depends only on the request's seed and the position.

SGLang's sampler has one generator per process, so an answer depends on which requests run together and on
everything sampled before, and a resumed run could not repeat it. (SGLang's seeded sampler needs GPU kernels,
and hashes every token of the vocabulary although one number per row is enough.)

Shape letters: B rows, V vocabulary.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
_FRACTION_BITS = 48
"""Bits of the uniform number: fine enough for any vocabulary, and u * total stays below total in float64."""


def draw(weight_BV: Tensor, seed_B: Tensor, position_B: Tensor) -> Tensor:
    """Sample one column per row, with probability proportional to its weight.

    Args:
        weight_BV: non-negative weights; a row need not sum to one.
        seed_B, position_B: int64; the same pair gives the same column for the same weights.

    Returns:
        int64 [B]; never a column of weight 0.
    """
    cumulative_BV = weight_BV.cumsum(dim=-1, dtype=torch.float64)
    threshold_B1 = uniform(seed_B, position_B)[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True).flatten()


def uniform(seed_B: Tensor, position_B: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B], practically independent over seeds and positions."""
    bits_B = _mixed(_mixed(seed_B + _GOLDEN) + position_B * _GOLDEN)
    return _shifted(bits_B, 64 - _FRACTION_BITS).double() * 2.0**-_FRACTION_BITS


def truncated(prob_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor | None) -> Tensor:
    """The distribution after top-k, top-p and min-p: [B, V], 0 for tokens that are left out.

    A token is kept if fewer than top_k tokens are likelier, if these have a total probability of at most
    top_p, and if its own probability is at least min_p times that of the likeliest token.
    """
    # Columns keep their order, so that a row which keeps all tokens draws the same token as without this
    # function: SGLang calls it for a whole batch if one request needs it.
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
    """Logical shift to the right; the shift of int64 tensors is arithmetic."""
    return (x_B >> bits) & ((1 << (64 - bits)) - 1)
