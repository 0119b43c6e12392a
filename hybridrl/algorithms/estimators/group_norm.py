"""The grid of reward normalisations: which mean, which standard deviation, whitened over what.

Source: GRPO, Dr. GRPO, RLOO, LitePPO and REINFORCE++ (with and without baseline) are six of its cells.
Formula: A = whiten((s_i - mean) / (std + eps)); no division where std is 0
Use: to vary one choice at a time, and to reproduce the numerics of other frameworks.
Shape letters: N trajectories in the batch, G prompts (groups).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, OneRank, register_estimator
from hybridrl.algorithms.groups import batch_std, centre, check_rewards, group_size, group_std, others_std
from hybridrl.algorithms.sequences import whiten


@register_estimator("group_norm")
@dataclass(frozen=True, kw_only=True, slots=True)
class GroupNorm:
    """Reward minus a mean, over a standard deviation, whitened."""

    mean: Literal["none", "batch", "group", "others"] = "group"
    """Mean that is subtracted. others: the group's without the trajectory itself (leave one out)."""

    std: Literal["none", "batch", "group", "others"] = "group"
    """Standard deviation of the rewards that is divided by; others: the group's without the trajectory
    itself."""

    whiten: Literal["none", "token", "sequence"] = "none"
    """Whiten over all trained tokens, or all trajectories, of the batch, with n-1."""

    singleton: Literal["zero", "reward"] = "zero"
    """Advantage of the only answer to a prompt before whitening: 0, or its reward / (1 + eps)."""

    eps: float = 1e-6
    """Added to the std, in units of reward."""

    whiten_eps: float = 1e-8
    """Added to the variance of whitening, under the root."""

    bessel: bool = True
    """Divide by n-1 in the std; False: by n."""

    needs: ClassVar[frozenset[Column]] = frozenset({"length"})

    @property
    def min_group_size(self) -> int:
        return 2 if {"group", "others"} & {self.mean, self.std} and self.singleton == "zero" else 1

    def __call__(self, reward_N: Tensor, group_N: Tensor, length_N: Tensor) -> Tensor:
        """The advantages, [N]; they sum to 0 within each group for mean = group, and for mean = others
        without a std."""
        check_rewards(reward_N, group_N)
        centred_N, std_N = self._centred(reward_N, group_N), self._std(reward_N, group_N)
        advantage_N = torch.where(std_N > 0, centred_N / (std_N + self.eps), centred_N)
        alone_N = group_size(group_N, reward_N.dtype) == 1
        if {"group", "others"} & {self.mean, self.std}:
            kept_N = reward_N / (1 + self.eps) if self.singleton == "reward" else torch.zeros_like(reward_N)
            advantage_N = torch.where(alone_N, kept_N, advantage_N)
        if self.whiten == "none":
            return advantage_N
        weight_N = length_N if self.whiten == "token" else torch.ones_like(length_N)
        return whiten(advantage_N, weight_N, OneRank(), eps=self.whiten_eps)

    def _centred(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        if self.mean == "none":
            return reward_N
        if self.mean == "batch":
            return centre(reward_N, torch.zeros_like(group_N))
        size_N = group_size(group_N, reward_N.dtype)
        scale_N = size_N / (size_N - 1).clamp(min=1) if self.mean == "others" else torch.ones_like(size_N)
        return centre(reward_N, group_N) * scale_N

    def _std(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        """The standard deviations, [N]; 0: do not divide."""
        if self.std == "none":
            return torch.zeros_like(reward_N)
        if self.std == "batch":
            return batch_std(reward_N, bessel=self.bessel).expand_as(reward_N)
        if self.std == "group":
            return group_std(centre(reward_N, group_N), group_N, bessel=self.bessel)
        return others_std(reward_N, group_N, bessel=self.bessel)
