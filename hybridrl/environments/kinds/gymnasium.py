"""An environment of Gymnasium with discrete actions, whose observations become text.

environment: {name: gymnasium, id: FrozenLake-v1, actions: [left, down, right, up]}

Equal observations are one state to estimators that compare states (gigpo). It needs the package gymnasium.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.packages import require
from hybridrl.registry import register


@register("environment", "gymnasium")
class Gymnasium:
    def __init__(
        self,
        *,
        id: str,
        make: Mapping[str, Any] | None = None,
        actions: Sequence[str] = (),
        states: Sequence[str] = (),
        pattern: str | None = None,
        legal: float = 0.0,
        on_illegal: str = "end",
    ) -> None:
        """
        Args:
            id: as in gymnasium.make.
            make: further arguments of gymnasium.make.
            actions: words for the actions, in their order. None: their numbers.
            states: words for discrete observations, in their order. None: observations as Python writes them.
            pattern: a regular expression with one group, the action in a turn's text. None: the whole text.
            legal: reward for each turn that names an action, besides the environment's.
            on_illegal: end: a turn that names no action ends the episode; tell: the policy reads the actions.
        """
        require("gymnasium", "gymnasium==1.4.0", needed_by="environment gymnasium")
        if on_illegal not in ("end", "tell"):
            raise ValueError(f"on_illegal = {on_illegal}, which is not end or tell")
        self._id, self._make, self._actions, self._states = id, dict(make or {}), list(actions), list(states)
        self._pattern = re.compile(pattern, re.DOTALL) if pattern else None
        self._legal, self._on_illegal = legal, on_illegal

    @classmethod
    def warm_up(cls) -> None:
        import gymnasium  # noqa: F401

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        import gymnasium

        self._game = gymnasium.make(self._id, disable_env_checker=True, **self._make)
        space = self._game.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise TypeError(f"{self._id} has actions of {space}, and a text names one of a few")
        first = int(space.start)
        words = self._actions or [str(i) for i in range(first, first + int(space.n))]
        if len(words) != space.n:
            raise ValueError(f"{self._id} has {space.n} actions, and `actions` has {len(words)} words")
        self._known = dict(zip(words, range(first, first + int(space.n)), strict=True))
        seen, _ = self._game.reset(seed=seed % 2**32)
        return self._observed(seen)

    def step(self, turn: Turn) -> Observation:
        action = self._known.get(self._said(turn.text))
        if action is None:
            told = f"Say one of: {', '.join(self._known)}"
            return Observation(
                told, done=self._on_illegal == "end", anchor=self._anchor, metrics={"illegal": 1.0}
            )
        seen, reward, terminated, truncated, _ = self._game.step(action)
        return self._observed(seen, float(reward) + self._legal, bool(terminated or truncated))

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
        text = self._states[int(seen)] if self._states else self._anchor
        return Observation(text, reward=reward, done=done, anchor=self._anchor)
