"""PF-PPO: answers are resampled by how much their reward can be trusted, then PPO-clip.

Source: Zhang et al. 2024, "Policy Filtration for RLHF", arXiv:2409.06957
Formula: every answer counts as often as it is drawn, N draws with probability ~ |s|^power (pow), or by rank
    at both ends
Use: noisy reward models, which are right about very good and very bad answers only.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.bounds import check_clip
from hybridrl.algorithms.ratios import clipped_surrogate, log_ratio
from hybridrl.algorithms.selection import draw_copies


@register_policy_loss("pf_ppo")
@dataclass(frozen=True, kw_only=True, slots=True)
class PFPPO:
    """PPO-clip on the resampled batch."""

    clip_low: float = 0.2
    """The ratio's gradient ends at 1 - clip_low."""

    clip_high: float = 0.2
    """The ratio's gradient ends at 1 + clip_high."""

    way: Literal["pow", "max_min", "max_random"] = "pow"
    """pow: by |reward|^power; max_min: the best and the worst answer of each group; max_random: the best and
    a random one."""

    power: float = 2.0
    """Exponent of |reward|, for pow."""

    seed: int = 0
    """Seed of the draws, together with the step."""

    needs: ClassVar[frozenset[Column]] = frozenset({"old_logp", "copies"})
    makes: ClassVar[frozenset[Column]] = frozenset({"copies"})

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        copies_N = draw_copies(
            known.reward_N, known.group_N, self.way, power=self.power, seed=(self.seed, known.step)
        )
        return Prepared({"copies": copies_N.to(known.advantage_T.dtype)[known.tokens.seq_T]}, {})

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, old_logp_T: Tensor, copies_T: Tensor
    ) -> TokenLoss:
        ratio_T = log_ratio(logp_T, old_logp_T).exp()
        loss_T, clipped_T = clipped_surrogate(ratio_T, advantage_T, self.clip_low, self.clip_high)
        return TokenLoss(loss_T * copies_T, {"actor/pg_clipfrac": clipped_T.to(loss_T.dtype)})
