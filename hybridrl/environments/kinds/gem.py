"""An environment of GEM, as game:GuessTheNumber-v0-easy.

environment: {name: gem, id: "game:GuessTheNumber-v0-easy", max_turns: 4}

It needs the package gem-llm; games of GEM draw from Python's global generator, of which every episode has its
own state here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.kinds._seeded import OwnRandom
from hybridrl.environments.packages import require
from hybridrl.registry import register


@register("environment", "gem")
@dataclass(kw_only=True)
class Gem:
    id: str
    """Name of the environment, as in gem.make."""

    make: Mapping[str, Any] | None = None
    """Further arguments of gem.make."""

    def __post_init__(self) -> None:
        require("gem", "gem-llm==0.1.0", needed_by="environment gem")

    @classmethod
    def warm_up(cls) -> None:
        import gem  # noqa: F401

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        import gem

        self._random = OwnRandom(seed)
        with self._random.here():
            self._game = gem.make(self.id, **(self.make or {}))
            text, info = self._game.reset(seed=seed % 2**32)
        return Observation(_with_suffix(text, info))

    def step(self, turn: Turn) -> Observation:
        with self._random.here():
            text, reward, terminated, truncated, info = self._game.step(turn.text)
        return Observation(_with_suffix(text, info), reward=float(reward), done=bool(terminated or truncated))


def _with_suffix(text: str, info: Mapping[str, Any]) -> str:
    suffix = info.get("suffix")
    return f"{text}\n{suffix}" if suffix else text
