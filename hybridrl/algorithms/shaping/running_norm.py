"""Division by a running standard deviation of all rewards seen, after subtracting their running mean.

Source: running normalisation as in PPO's reference implementations; sums by Chan et al. 1979.
Formula: (s - mean) / sqrt(var + eps), mean and var (n-1) over every reward so far, this batch included
Use: reward models of unknown scale; group-relative estimators do not need it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards


@register_shaping("running_norm")
@dataclass(frozen=True, kw_only=True, slots=True)
class RunningNorm:
    """Rewards in units of their spread. It keeps state between steps, which `state_dict` puts into the
    checkpoint."""

    centre: bool = True
    """Subtract the mean; False: scale only."""

    eps: float = 1e-8
    """Added to the variance, under the root."""

    sums: dict[str, float] = field(
        init=False, default_factory=lambda: {"count": 0.0, "mean": 0.0, "squares": 0.0}
    )
    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        check_rewards(reward_N, group_N)
        self._add(reward_N.double())
        variance = self.sums["squares"] / max(self.sums["count"] - 1, 1)
        mean = self.sums["mean"] if self.centre else 0.0
        return (reward_N - mean) / (variance + self.eps) ** 0.5

    def _add(self, reward_N: Tensor) -> None:
        count, mean = len(reward_N), float(reward_N.mean())
        total, difference = self.sums["count"] + count, mean - self.sums["mean"]
        squares = float((reward_N - mean).square().sum()) + difference**2 * self.sums["count"] * count / total
        self.sums.update(
            count=total,
            mean=self.sums["mean"] + difference * count / total,
            squares=self.sums["squares"] + squares,
        )

    def state_dict(self) -> dict[str, float]:
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.sums.update(state)
