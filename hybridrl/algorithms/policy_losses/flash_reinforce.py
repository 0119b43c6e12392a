"""FlashREINFORCE: token importance weights since sampling, and a trust region on whole answers.

Source: Hu, Zhang, Zhang et al. 2026, "FlashREINFORCE: Critic-Free Single-Rollout Asynchronous RL for Agentic
    Language Models"; verl, docs/algo "FlashREINFORCE".
Formula: L = -w A while the answer's mean of KL(mu || p) <= delta, else 0; w = exp(logp - rollout_logp); KL of
    this token against all others, mu the engine's probability
Use: asynchronous training with one answer per prompt, A = s - mean of the batch (group_norm, mean: batch); a
    rejected answer still counts in the denominator.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.divergence import binary_kl
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.sequences import sequence_mean


@register_policy_loss("flash_reinforce")
@dataclass(frozen=True, kw_only=True, slots=True)
class FlashReinforce:
    """REINFORCE with an unclipped importance weight, on answers that the policy has not left."""

    delta: float = 1e-3
    """Bound on the mean divergence of an answer from the engine's policy, in nats; 3e-3 in TRL."""

    needs: ClassVar[frozenset[Column]] = frozenset({"rollout_logp"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_mean"})

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, rollout_logp_T: Tensor
    ) -> TokenLoss:
        divergence_S = sequence_mean(binary_kl(rollout_logp_T, logp_T.detach()), tokens)
        # A comparison with NaN is False, so an answer with an impossible token is rejected.
        kept_T = (divergence_S <= self.delta)[tokens.seq_T]
        weight_T = log_ratio(logp_T.where(kept_T, 0), rollout_logp_T.where(kept_T, 0)).exp()
        loss_T = -weight_T * advantage_T * kept_T
        return TokenLoss(
            loss_T,
            {
                "actor/pg_clipfrac": (~kept_T).to(loss_T.dtype),
                "actor/binary_kl": divergence_S[tokens.seq_T].nan_to_num(posinf=0),
            },
        )
