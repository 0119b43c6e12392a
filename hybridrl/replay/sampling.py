"""What the ways to sample of an engine would add to the log-probabilities of tokens.

An engine that samples from a truncated or sharpened distribution and reports its probabilities gives tokens
others than the trainer. Shape letters: T tokens, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.5, 2.0)
"""Factors on the temperature of the run."""

TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
TOP_K = (1, 2, 5, 10, 20, 50, 100)
MIN_P = (0.01, 0.02, 0.05, 0.1)


def shifts(logits_TV: Tensor, token_T: Tensor) -> dict[str, Tensor]:
    """Name of a way to sample -> what it adds, [T].

    Args:
        logits_TV: those that the token was drawn from, divided by the temperature.
    """
    logp_TV = logits_TV.float().log_softmax(-1)
    own_T = logp_TV.gather(1, token_T[:, None])[:, 0]
    found = {
        f"temperature times {factor:g}": (logits_TV / factor)
        .log_softmax(-1)
        .gather(1, token_T[:, None])[:, 0]
        - own_T
        for factor in TEMPERATURES
    }
    for name, kept_TV in _masks(logp_TV):
        mass_T = (logp_TV.exp() * kept_TV).sum(-1)
        is_kept_T = kept_TV.gather(1, token_T[:, None])[:, 0]
        found[name] = torch.where(is_kept_T, -mass_T.log(), torch.zeros_like(mass_T))
    return found


def _masks(logp_TV: Tensor) -> Iterator[tuple[str, Tensor]]:
    prob_TV = logp_TV.exp()
    sorted_TV, order_TV = prob_TV.sort(-1, descending=True)
    likelier_TV = torch.empty_like(prob_TV).scatter_(1, order_TV, sorted_TV.cumsum(-1) - sorted_TV)
    rank_TV = torch.empty_like(order_TV).scatter_(
        1, order_TV, torch.arange(prob_TV.shape[1]).expand_as(order_TV)
    )
    for top_p in TOP_P:
        yield f"top_p {top_p:g}", likelier_TV < top_p
    for top_k in TOP_K:
        yield f"top_k {top_k}", rank_TV < top_k
    for min_p in MIN_P:
        yield f"min_p {min_p:g}", prob_TV >= min_p * sorted_TV[:, :1]
