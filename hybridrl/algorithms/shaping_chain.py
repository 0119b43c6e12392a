"""Loads the shaping of rewards that a config lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hybridrl.algorithms.base import Shaping
from hybridrl.algorithms.columns import Column, argument
from hybridrl.algorithms.plugins import build
from hybridrl.config.section import PluginConfig


@dataclass(frozen=True, slots=True)
class ShapingChain:
    """Several shapings, one after the other."""

    steps: tuple[Shaping, ...]

    @property
    def needs(self) -> frozenset[Column]:
        return frozenset().union(*(step.needs for step in self.steps))

    def __call__(self, reward_N: Tensor, group_N: Tensor, **columns: Tensor) -> Tensor:
        for step in self.steps:
            own = {argument(c): columns[argument(c)] for c in step.needs}
            reward_N = step(reward_N, group_N, **own)
        return reward_N


def load_shaping(entries: Sequence[str | dict[str, Any]], *, where: str) -> ShapingChain:
    """
    Args:
        entries: file names in hybridrl.algorithms.shaping, or {name: overlong, limit: 8192, margin: 1024}.

    Raises:
        ConfigError: an unknown plug-in or option.
    """
    configs = [PluginConfig.model_validate(entry) for entry in entries]
    return ShapingChain(tuple(build("shaping", c.name, c.options, where=where) for c in configs))
