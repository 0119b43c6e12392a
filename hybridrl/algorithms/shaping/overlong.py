"""DAPO's soft penalty on answers that come near the limit.

Source: Yu et al. 2025, "DAPO", arXiv:2503.14476; the same line in AReaL and OpenRLHF.
Formula: s - penalty * clip((length - (limit - margin)) / margin, 0, 1)
Use: where answers are truncated at the limit: the penalty grows before that happens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards


@register_shaping("overlong")
@dataclass(frozen=True, kw_only=True, slots=True)
class Overlong:
    """There is no penalty up to limit - margin; then it grows linearly, up to `penalty` at the limit."""

    limit: int
    """Trained tokens at which the penalty is complete: rollout.max_response_tokens."""

    margin: int
    """Tokens before the limit over which the penalty grows; 4096 of 20480 in the paper."""

    penalty: float = 1.0
    """Penalty at the limit, in units of reward."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})

    def __post_init__(self) -> None:
        if not 0 < self.margin <= self.limit:
            raise ValueError(f"margin = {self.margin} is not in (0, limit = {self.limit}]")

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        check_rewards(reward_N, group_N)
        over_N = (length_N - (self.limit - self.margin)).to(reward_N.dtype) / self.margin
        return reward_N - self.penalty * over_N.clamp(0, 1)
