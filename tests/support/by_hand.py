"""Losses and gradients of an algorithm on batches that are small enough to check by hand."""

from typing import Any

import torch
from torch import Tensor

from hybridrl.algorithms.base import Known, OneRank, Tokens, Totals
from hybridrl.algorithms.objective import Objective
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def preset(name: str, **changes: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate({**PRESETS[name].algorithm, **changes})


def gradient(
    config: AlgorithmConfig,
    advantage_T: Tensor,
    logp_T: Tensor,
    tokens: Tokens | None = None,
    **columns: Tensor,
) -> tuple[float, list[float]]:
    """The loss of one minibatch, and its gradient in each log-probability.

    Args:
        tokens: None: all tokens are trained ones of one answer.
    """
    tokens = tokens or Tokens(torch.zeros(len(logp_T), dtype=torch.int64), logp_T == logp_T, 1)
    objective = Objective(config, max_response_tokens=16)
    logp_T = logp_T.clone().requires_grad_()
    if objective.prepares:
        zeros_N = torch.zeros(tokens.num_seqs)
        known = Known(0, zeros_N, zeros_N.long(), advantage_T, tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    totals = Totals(len(logp_T), tokens.num_seqs)
    loss, _ = objective(logp_T, None, columns, advantage_T, tokens, totals)
    loss.backward()
    assert logp_T.grad is not None
    return float(loss.detach()), logp_T.grad.tolist()
