"""A penalty in proportion to the group's mean reward and the answer's share of the longest.

Source: no paper; the length penalty of prime-rl.
Formula: s - mean_g(s) (w_answer length / longest + w_prompt prompt / longest prompt + w_turns turns / most
    turns)
Use: with dr_grpo; groups that are never solved are not pushed to be short.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridrl.algorithms.base import Column, register_shaping
from hybridrl.algorithms.groups import check_rewards, group_max, group_size, group_sum


@register_shaping("relative_length")
@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeLength:
    """Long answers, prompts and conversations cost most where the group does well."""

    answer: float = 0.0
    """Weight of the answer's trained tokens, divided by the most in the group."""

    prompt: float = 0.0
    """Weight of the prompt's tokens, divided by the most in the group."""

    turns: float = 0.0
    """Weight of the number of turns, divided by the most in the group."""

    @property
    def needs(self) -> frozenset[Column]:
        return frozenset({"length", "prompt_length"} | ({"turns"} if self.turns else set()))

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        length_N: Tensor,
        prompt_length_N: Tensor,
        turns_N: Tensor | None = None,
    ) -> Tensor:
        check_rewards(reward_N, group_N)
        share_N = torch.zeros_like(reward_N)
        weighed = ((self.answer, length_N), (self.prompt, prompt_length_N), (self.turns, turns_N))
        for weight, size_N in weighed:
            if size_N is None:
                continue
            size_N = size_N.to(reward_N.dtype)
            share_N = share_N + weight * size_N / group_max(size_N, group_N).clamp(min=1)
        mean_N = group_sum(reward_N, group_N) / group_size(group_N, reward_N.dtype)
        return reward_N - mean_N * share_N
