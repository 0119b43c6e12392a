"""Coefficients of KL and entropy that adapt to a target over a run.

They are equal on all ranks and part of a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridrl.algorithms.advantages import WithTokenRewards
from hybridrl.algorithms.base import AdvantageEstimator
from hybridrl.algorithms.controllers import AdaptiveEntropy, AdaptiveKL
from hybridrl.algorithms.objective import Objective
from hybridrl.config.schema import AlgorithmConfig


class Coefficients:
    """Adapts the coefficients of an objective, and of an estimator with a KL penalty on the reward."""

    def __init__(
        self, algorithm: AlgorithmConfig, objective: Objective, estimator: AdvantageEstimator
    ) -> None:
        kl, target = algorithm.kl, algorithm.entropy_target
        self._objective, self.estimator = objective, estimator
        self._kl = self._entropy = None
        if kl.target is not None and kl.coefficient > 0:
            self._kl = AdaptiveKL(coefficient=kl.coefficient, target=kl.target, horizon=kl.horizon)
        if target is not None:
            self._entropy = AdaptiveEntropy(coefficient=algorithm.entropy_coefficient, target=target)

    def after_batch(self, kl: float | None, entropy: float, num_trajectories: int) -> None:
        """
        Args:
            kl: mean KL between policy and reference over the trained tokens, in nats; None if not measured.
            entropy: mean entropy over the trained tokens, in nats.
        """
        if self._kl is not None:
            assert kl is not None, "an adaptive coefficient has its divergence measured"
            self._kl = self._kl.next(kl, num_trajectories)
        if self._entropy is not None:
            self._entropy = self._entropy.next(entropy)
        self._apply()

    def state_dict(self) -> dict[str, float]:
        followed = {"kl": self._kl, "entropy": self._entropy}
        return {name: one.coefficient for name, one in followed.items() if one is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._kl is not None:
            self._kl = replace(self._kl, coefficient=state["kl"])
        if self._entropy is not None:
            self._entropy = replace(self._entropy, coefficient=state["entropy"])
        self._apply()

    def _apply(self) -> None:
        if self._entropy is not None:
            self._objective.entropy_coefficient = self._entropy.coefficient
        if self._kl is None:
            return
        if self._objective.has_kl:
            self._objective.kl_coefficient = self._kl.coefficient
        elif isinstance(self.estimator, WithTokenRewards):
            self.estimator = replace(self.estimator, kl_coefficient=self._kl.coefficient)
