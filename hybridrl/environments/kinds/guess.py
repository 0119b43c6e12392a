"""Guess a hidden digit in a few turns: after a wrong guess the policy is told whether it is higher or lower.

environment: {name: guess, max_turns: 4}

The task guess makes its rows. A guess is one digit and pays `form`, the right one 1; anything else ends the
game. A player who does not read the answers finds 40 % of the digits in four turns. It is GuessTheNumber of
GEM (github.com/axon-rl/gem) in single letters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.registry import register


@register("environment", "guess")
@dataclass(kw_only=True)
class Guess:
    form: float = 0.1
    """Reward of a wrong guess that is one digit."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._secret, self._low, self._high = int(row["answer"]), 0, 9
        return Observation(anchor=self._known())

    def step(self, turn: Turn) -> Observation:
        if not (turn.finish == "stop" and len(turn.text) == 1 and turn.text in "0123456789"):
            return Observation(done=True, metrics={"solved": 0.0})
        guess = int(turn.text)
        if guess == self._secret:
            return Observation(reward=1.0, done=True, metrics={"solved": 1.0})
        if guess < self._secret:
            self._low = max(self._low, guess + 1)
        else:
            self._high = min(self._high, guess - 1)
        return Observation(
            "+" if guess < self._secret else "-",
            reward=self.form,
            anchor=self._known(),
            metrics={"solved": 0.0},
        )

    def _known(self) -> int:
        """What is known of the digit."""
        return 10 * self._low + self._high
