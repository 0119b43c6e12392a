"""Decoupled PPO: clip around a recent policy, weigh against the one that sampled.

Source: Fu et al. 2025, "AReaL", arXiv:2505.24298
Formula: L = sg[min(pi_near / pi_engine, cap)] max(-r A, -clip(r) A), r = pi / pi_near
Use: asynchronous training, where the policy that sampled is several updates old.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio


@register_policy_loss("decoupled_ppo")
@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledPPO:
    """PPO-clip around the proximal policy, times the importance weight of that policy."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high."""

    cap: float | None = 5.0
    """Bound on the importance weight; None: no bound."""

    near: Literal["recomputed", "interpolated"] = "recomputed"
    """recomputed: the trainer's policy before the update, one forward pass; interpolated: between engine and
    current policy in log space, by their versions, without that pass."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    @property
    def needs(self) -> frozenset[Column]:
        return frozenset({"rollout_logp", "old_logp" if self.near == "recomputed" else "lag"})

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        rollout_logp_T: Tensor,
        old_logp_T: Tensor | None = None,
        lag_T: Tensor | None = None,
    ) -> TokenLoss:
        near_T = old_logp_T
        if near_T is None:
            assert lag_T is not None
            # The current update makes the policy lag + 1 versions newer than the one that sampled.
            lag_T = lag_T.to(logp_T.dtype)
            share_T = lag_T / (lag_T + 1)
            near_T = rollout_logp_T + share_T * (logp_T.detach() - rollout_logp_T)
        ratio_T = log_ratio(logp_T, near_T).exp()
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        weight_T = log_ratio(near_T, rollout_logp_T).exp()
        weight_T = weight_T if self.cap is None else weight_T.clamp(max=self.cap)
        mean = {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype), "actor/behaviour_weight": weight_T}
        return TokenLoss(weight_T * loss_T, mean)
