"""An environment of Gymnasium with discrete actions, whose observations become text.

environment: {name: gymnasium, id: FrozenLake-v1, actions: [left, down, right, up]}

Equal observations are one state to estimators that compare states (gigpo). It needs the package gymnasium.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.packages import require
from hybridrl.registry import register


@register("environment", "gymnasium")
@dataclass(kw_only=True)
class Gymnasium:
    id: str
    """Name of the environment, as in gymnasium.make."""

    make: Mapping[str, Any] | None = None
    """Further arguments of gymnasium.make."""

    actions: tuple[str, ...] = ()
    """Words for the actions, in their order; none: their numbers."""

    states: tuple[str, ...] = ()
    """Words for discrete observations, in their order; none: observations as Python writes them."""

    pattern: str | None = None
    """A regular expression with one group, the action in a turn's text. null: the whole text."""

    legal: float = 0.0
    """Reward of each turn that names an action, besides the environment's."""

    on_illegal: Literal["end", "tell"] = "end"
    """What a turn that names no action leads to. end: the episode ends. tell: the policy reads what it may
    say."""

    def __post_init__(self) -> None:
        require("gymnasium", "gymnasium==1.4.0", needed_by="environment gymnasium")
        self._pattern = re.compile(self.pattern, re.DOTALL) if self.pattern else None

    @classmethod
    def warm_up(cls) -> None:
        import gymnasium  # noqa: F401

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        import gymnasium

        self._game = gymnasium.make(self.id, disable_env_checker=True, **(self.make or {}))
        space = self._game.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise TypeError(f"{self.id} has actions of {space}, and a text names one of a few")
        first = int(space.start)
        words = list(self.actions) or [str(i) for i in range(first, first + int(space.n))]
        if len(words) != space.n:
            raise ValueError(f"{self.id} has {space.n} actions, and `actions` has {len(words)} words")
        self._known = dict(zip(words, range(first, first + int(space.n)), strict=True))
        seen, _ = self._game.reset(seed=seed % 2**32)
        return self._observed(seen)

    def step(self, turn: Turn) -> Observation:
        action = self._known.get(self._said(turn.text))
        if action is None:
            told = f"Say one of: {', '.join(self._known)}"
            return Observation(
                told, done=self.on_illegal == "end", anchor=self._anchor, metrics={"illegal": 1.0}
            )
        seen, reward, terminated, truncated, _ = self._game.step(action)
        return self._observed(seen, float(reward) + self.legal, bool(terminated or truncated))

    def close(self) -> None:
        if hasattr(self, "_game"):
            self._game.close()

    def _said(self, text: str) -> str:
        if self._pattern is None:
            return text.strip()
        found = self._pattern.search(text)
        return found[1].strip() if found else ""

    def _observed(self, seen: Any, reward: float = 0.0, done: bool = False) -> Observation:
        self._anchor = str(seen.tolist() if hasattr(seen, "tolist") else seen)
        text = self.states[int(seen)] if self.states else self._anchor
        return Observation(text, reward=reward, done=done, anchor=self._anchor)
