"""Distillation by whole distributions: the divergence from the teacher at each token of the policy's answers.

Source: Zhao et al. 2026, "Self-Distilled Reasoner", arXiv:2601.18734 (OPSD, with algorithm.hint); Agarwal et
    al. 2023, "On-Policy Distillation of Language Models", arXiv:2306.13649 (GKD, with algorithm.teacher).
Formula: L = beta KL(t || m) + (1 - beta) KL(p || m), m = beta t + (1 - beta) p; KL(t || p) if beta
    = 0, KL(p || t) if beta = 1; t, p over the teacher's K likeliest tokens and the rest as one more
Use: a teacher says more with a distribution than with one number about the sampled token. The advantage is
    not used, so rewards are only observed.
Shape letters: T packed tokens, K tokens of the teacher's head, J = K + 1 with the rest of the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss

_LEAST_REST = 1e-6
"""Least probability of the rest: 1 - sum may round to 0."""


@register_policy_loss("teacher_divergence")
@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDivergence:
    """A generalised Jensen-Shannon divergence of policy and teacher."""

    beta: float = 0.5
    """Weight of the teacher in the mixture that both are compared with; 0: forward, 1: reverse KL."""

    head_tokens: int = 64
    """K: how many of its likeliest tokens the teacher reports. With the whole vocabulary the divergence is
    exact, and more than that are not asked for; with fewer, all other tokens count as one."""

    needs: ClassVar[frozenset[Column]] = frozenset({"teacher_logp", "teacher_head_logp", "head_logp"})

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta = {self.beta} is not between 0 and 1")
        if self.head_tokens < 1:
            raise ValueError(f"head_tokens = {self.head_tokens}: at least one token is needed")

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        teacher_logp_T: Tensor,
        teacher_head_logp_TK: Tensor,
        head_logp_TK: Tensor,
    ) -> TokenLoss:
        teacher_TJ, policy_TJ = _with_rest(teacher_head_logp_TK), _with_rest(head_logp_TK)
        loss_T = self._divergence(teacher_TJ, policy_TJ)
        return TokenLoss(
            loss_T,
            {
                "actor/teacher_divergence": loss_T.detach(),
                "actor/teacher_head": teacher_head_logp_TK.exp().sum(1),
                "actor/teacher_gap": teacher_logp_T - logp_T.detach(),
            },
        )

    def _divergence(self, teacher_TJ: Tensor, policy_TJ: Tensor) -> Tensor:
        if self.beta == 0:
            return _kl(teacher_TJ, policy_TJ)
        if self.beta == 1:
            return _kl(policy_TJ, teacher_TJ)
        mixture_TJ = torch.logaddexp(teacher_TJ + math.log(self.beta), policy_TJ + math.log1p(-self.beta))
        return self.beta * _kl(teacher_TJ, mixture_TJ) + (1 - self.beta) * _kl(policy_TJ, mixture_TJ)


def _with_rest(head_logp_TK: Tensor) -> Tensor:
    rest_T = (1 - head_logp_TK.exp().sum(1)).clamp(min=_LEAST_REST)
    return torch.cat([head_logp_TK, rest_T.log().unsqueeze(1)], dim=1)


def _kl(log_a_TJ: Tensor, log_b_TJ: Tensor) -> Tensor:
    return (log_a_TJ.exp() * (log_a_TJ - log_b_TJ)).sum(1)
