"""GDPO: every part of the reward is normalised in its group before the parts are added, so that none
dominates.

Source: Liu et al. 2026, "GDPO", arXiv:2601.05242; over all trained tokens: verl 0.9.1,
    compute_gdpo_outcome_advantage; leave one out: NeMo-RL, GDPOAdvantageEstimator.
Formula: A = whiten(sum over k of w_k (s_ik - mean_g(s_k)) / (std_g(s_k) + eps)), over all answers of the
    batch, or all trained tokens; with baseline = others: mean and std of the group without the answer, and no
    division where that std is 0
Use: several rewards of different scale or rarity (correct, format, length).
Shape letters: N trajectories in the batch, K parts of the reward.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, OneRank, register_estimator
from hybridrl.algorithms.groups import centre, check_rewards, group_size, group_std, others_std
from hybridrl.algorithms.sequences import whiten


@register_estimator("gdpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class GDPO:
    """Weighted sum of the group-normalised parts, whitened; the total reward itself is not used."""

    weights: tuple[float, ...] | None = None
    """One weight per part, in alphabetical order of the parts' names; None: 1 each."""

    whiten: Literal["sequence", "token"] = "sequence"
    """Whiten over all answers of the batch as in the paper, or over all trained tokens as in verl."""

    baseline: Literal["group", "others"] = "group"
    """Whose mean and std a part is normalised by: the group's, or those of the other answers of the group."""

    eps: float = 1e-6
    """Added to the std of a part in its group."""

    whiten_eps: float = 1e-8
    """Added to the variance over the batch, under the root."""

    needs: ClassVar[frozenset[Column]] = frozenset({"reward_parts", "length"})
    min_group_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.weights is not None and not any(self.weights):
            raise ValueError(f"weights = {list(self.weights)}: no part of the reward counts")

    def check_parts(self, count: int) -> None:
        """
        Raises:
            ValueError: there are fewer than two parts, or not as many as weights.
        """
        if count < 2:
            raise ValueError(f"gdpo normalises parts of the reward against each other, and it has {count}")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"{len(self.weights)} weights for {count} parts of the reward")

    def __call__(
        self, reward_N: Tensor, group_N: Tensor, reward_parts_NK: Tensor, length_N: Tensor
    ) -> Tensor:
        """The advantages, [N].

        Raises:
            ValueError: the errors of check_parts(), or a part is not finite.
        """
        self.check_parts(reward_parts_NK.shape[1])
        check_rewards(reward_N, group_N)
        weights = self.weights or (1.0,) * reward_parts_NK.shape[1]
        total_N = torch.zeros_like(reward_N)
        for weight, part_N in zip(weights, reward_parts_NK.unbind(1), strict=True):
            check_rewards(part_N, group_N)
            total_N = total_N + weight * self._normalised(part_N, group_N)
        weight_N = length_N if self.whiten == "token" else torch.ones_like(length_N)
        return whiten(total_N, weight_N, OneRank(), eps=self.whiten_eps)

    def _normalised(self, part_N: Tensor, group_N: Tensor) -> Tensor:
        centred_N = centre(part_N, group_N)
        if self.baseline == "group":
            return centred_N / (group_std(centred_N, group_N) + self.eps)
        size_N = group_size(group_N, part_N.dtype)
        centred_N = centred_N * size_N / (size_N - 1).clamp(min=1)
        std_N = others_std(part_N, group_N)
        return torch.where(std_N > 0, centred_N / (std_N + self.eps), centred_N)
