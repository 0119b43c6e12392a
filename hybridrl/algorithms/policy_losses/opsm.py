"""Off-policy sequence masking: bad answers that the policy has moved away from are left out.

Source: DeepSeek-AI 2025, "DeepSeek-V3.2"
Formula: PPO-clip, times 0 on the whole answer where A < 0 and mean of (rollout_logp - logp) > delta
Use: stale or mismatched data: their negative gradients are the harmful ones.
Shape letters: T packed tokens, S trajectories.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio
from hybridrl.algorithms.sequences import sequence_mean


@register_policy_loss("opsm")
@dataclass(frozen=True, kw_only=True, slots=True)
class OPSM:
    """PPO-clip with a mask on answers."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high."""

    delta: float = 1e-4
    """Mean log ratio of engine to current policy over an answer, in nats per token, above which the answer is
    left out."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp", "rollout_logp"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, rollout_logp_T: Tensor
    ) -> TokenLoss:
        ratio_T = log_ratio(logp_T, old_logp_T).exp()
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        away_S = sequence_mean(rollout_logp_T - logp_T.detach(), tokens)
        left_out_T = (advantage_T < 0) & (away_S > self.delta)[tokens.seq_T]
        mean = {
            "actor/pg_clipfrac": clipped_T.to(loss_T.dtype),
            "actor/opsm_masked": left_out_T.to(loss_T.dtype),
        }
        return TokenLoss(loss_T.where(~left_out_T, 0), mean)
