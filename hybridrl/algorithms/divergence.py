"""Divergences between two policies that only the sampled token is needed for: this token against all others.

Both are lower bounds of the divergence over the whole vocabulary.
Shape letters: T packed tokens.
"""

import torch
from torch import Tensor

_LEAST = 1e-8
"""Least probability of all other tokens together: 1 - p rounds to 0 for a likely token."""


def binary_kl(logp_T: Tensor, other_logp_T: Tensor) -> Tensor:
    """KL(p || q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)) in nats, [T], with p = exp(logp). It is not
    finite where one of the probabilities is 0, and NaN where one is above 1."""
    p_T, q_T = logp_T.exp(), other_logp_T.exp()
    rest_T = (1 - p_T) * torch.log((1 - p_T + _LEAST) / (1 - q_T + _LEAST))
    return p_T * (logp_T - other_logp_T) + rest_T


def binary_tv(logp_T: Tensor, other_logp_T: Tensor) -> Tensor:
    """Total variation |p - q|, [T]."""
    return (logp_T.exp() - other_logp_T.exp()).abs()
