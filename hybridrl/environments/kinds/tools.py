"""Tools and nothing else: an answer without a call ends the episode."""

from collections.abc import Mapping
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.registry import register


@register("environment", "tools")
class ToolsAlone:
    """The question is the row's prompt, and the section `reward` judges the last answer."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation()

    def step(self, turn: Turn) -> Observation:
        return Observation(done=True)
