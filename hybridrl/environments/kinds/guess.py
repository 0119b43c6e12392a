"""Guess a hidden digit: after a wrong guess the policy is told whether the digit is higher or lower.

environment: {name: guess, max_turns: 4}

The row has the digit, see the task guess. A guess that is a single digit pays `form`, in every turn, and the
right one 1 at the end. It is the game GuessTheNumber of GEM (github.com/axon-rl/gem) in single letters.
"""

from collections.abc import Mapping
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.registry import register


@register("environment", "guess")
class Guess:
    def __init__(
        self, *, form: float = 0.1, field: str = "answer", higher: str = "+", lower: str = "-"
    ) -> None:
        self._form, self._field, self._higher, self._lower = form, field, higher, lower

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._secret = int(row[self._field])
        self._low, self._high = 0, 9
        return Observation(anchor=self._state())

    def step(self, turn: Turn) -> Observation:
        said = turn.text.strip()
        if not (len(said) == 1 and said.isdecimal()):
            return Observation("?", anchor=self._state(), metrics={"malformed": 1.0})
        guess = int(said)
        if guess == self._secret:
            return Observation(reward=1.0, done=True, metrics={"solved": 1.0})
        if guess < self._secret:
            self._low, answer = max(self._low, guess + 1), self._higher
        else:
            self._high, answer = min(self._high, guess - 1), self._lower
        return Observation(answer, reward=self._form, anchor=self._state())

    def _state(self) -> int:
        """What is known of the digit."""
        return 10 * self._low + self._high
