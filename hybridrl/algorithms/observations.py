"""The loss on tokens that an environment wrote: the policy learns to predict what its actions cause.

Source: Shrivastava et al. 2026, "ECHO: Terminal Agents Learn World Models for Free", arXiv:2605.24517,
    equation 3; over = token: prime-rl, component "ce" (docs/algorithms.md, August 2026).
Formula: L = loss + coefficient * mean over trajectories of -(1 / |O_i|) sum over O_i of log p; over = token:
    the sum over all trajectories by the number of their tokens
Shape letters: E observed tokens of a microbatch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridrl.config.signals import ObservationsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The observed tokens of a microbatch."""

    logp_E: Tensor
    """Their log-probabilities, with a gradient."""

    weight_E: Tensor
    """Share of each in the mean over the whole minibatch."""

    def loss(self) -> Tensor:
        """This microbatch's share of the mean of -log p."""
        return -(self.logp_E * self.weight_E).sum()


def observation_weights(
    config: ObservationsConfig, seq_E: Tensor, *, num_seqs: int, num_sequences: int, num_observed: int
) -> Tensor:
    """Share of each observed token in the mean over the minibatch, float32 [E].

    Args:
        seq_E: int64, trajectory of each token, in [0, num_seqs). A trajectory has all its tokens here.
        num_sequences: trajectories of the whole minibatch with a trained token, with observations or not.
        num_observed: observed tokens of the whole minibatch.
    """
    if config.over == "token":
        return torch.full_like(seq_E, 1 / max(num_observed, 1), dtype=torch.float32)
    length_S = torch.bincount(seq_E, minlength=num_seqs)
    return 1 / (length_S[seq_E].float() * max(num_sequences, 1))
