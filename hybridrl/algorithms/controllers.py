"""Coefficients that follow a target. They are pure: each step returns the next controller, whose only state
is the coefficient."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveKL:
    """Proportional control of the KL coefficient. Source: Ziegler et al. 2019, arXiv:1909.08593."""

    coefficient: float
    target: float
    """Divergence to hold, in nats per token."""

    horizon: int = 10_000
    """Trajectories over which an error of 20 % moves the coefficient by 20 %."""

    def next(self, kl: float, num_trajectories: int) -> "AdaptiveKL":
        """The controller after a batch with this mean divergence."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, coefficient=self.coefficient * (1 + error * num_trajectories / self.horizon))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveEntropy:
    """Moves the entropy coefficient in steps of fixed size. Source: Skywork-OR1, arXiv:2505.22312."""

    coefficient: float
    target: float
    """Mean entropy to hold, in nats."""

    step: float = 0.005
    lowest: float = 0.0
    highest: float = 1.0

    def next(self, entropy: float) -> "AdaptiveEntropy":
        """The controller after a batch with this mean entropy: more bonus below the target, less above it."""
        moved = self.coefficient + (self.step if entropy < self.target else -self.step)
        return replace(self, coefficient=min(max(moved, self.lowest), self.highest))
