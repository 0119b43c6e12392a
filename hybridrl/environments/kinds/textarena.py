"""A game of TextArena for one player or several; the policy plays all seats.

environment: {name: textarena, id: KuhnPoker-v0, players: 2}

Every player is an agent with its own dialogue, see the estimator rae. It needs the package TextArena, whose
games draw from Python's global generator, of which every episode has its own state here.
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.kinds._seeded import OwnRandom
from hybridrl.environments.packages import require
from hybridrl.registry import register


@register("environment", "textarena")
@dataclass(kw_only=True)
class TextArena:
    id: str
    """Name of the game, as in textarena.make, without the name of wrappers."""

    players: int = 1
    """Number of players."""

    make: Mapping[str, Any] | None = None
    """Further arguments of textarena.make."""

    def __post_init__(self) -> None:
        require("textarena", "TextArena==0.7.4", needed_by="environment textarena")

    @classmethod
    def warm_up(cls) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints while it is imported
            import textarena  # noqa: F401

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        import textarena

        self._random = OwnRandom(seed)
        with self._random.here():
            # The raw game gives each player what is new; the wrappers give the history every time.
            self._game: Any = textarena.make(f"{self.id}-raw", **(self.make or {}))
            self._game.reset(num_players=self.players, seed=seed % 2**32)
            player, text = self._seen()
        return Observation(text, agent=player)

    def step(self, turn: Turn) -> Observation:
        with self._random.here():
            done, _ = self._game.step(turn.text)
            if not done:
                player, text = self._seen()
                return Observation(text, agent=player)
            paid, _ = self._game.close()
        rewards = {int(player): float(reward) for player, reward in (paid or {}).items()}
        own = rewards.pop(turn.agent, 0.0)
        return Observation(reward=own, done=True, agent=turn.agent, rewards=rewards)

    def _seen(self) -> tuple[int, str]:
        """The player whose turn it is, and what is new to it, without its own words."""
        player, messages = self._game.get_observation()
        said = [f"{self._name(source)}{text}" for source, text, _ in messages if source != player]
        return int(player), "\n".join(said)

    def _name(self, source: int) -> str:
        return f"Player {source}: " if source >= 0 else ""
