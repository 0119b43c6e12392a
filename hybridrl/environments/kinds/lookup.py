"""Read a register with a tool and say what is in it; the registers differ in every game.

environment: {name: lookup, max_turns: 2}

The task lookup makes its rows: "7?" asks for register 7, the call [7] reads it, and then the policy says the
digit. So a policy that does not call the tool is right one time in ten. The call pays `form`, and `key` as
well if it reads the right register; parts of a call pay a part of `form`. After a call any digit pays `form`,
and the right one 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hybridrl.environments.base import Observation, Turn, tool
from hybridrl.registry import register


@register("environment", "lookup")
@dataclass(kw_only=True)
class Lookup:
    form: float = 0.1
    """Reward of a call, and of a wrong digit after it."""

    key: float = 0.3
    """What a call of the right register pays in addition."""

    text_calls: ClassVar[Mapping[str, str]] = {"read": r"^\[(?P<register>[0-9])\]$"}

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._registers, self._key, self._called = row["registers"], int(row["register"]), False
        return Observation(anchor="asked")

    @tool
    def read(self, register: int) -> Observation:
        """Read a register.

        Args:
            register: its number, from 0 to 9.
        """
        right = register == self._key
        reward = 0.0 if self._called else self.form + self.key * right
        metrics = {} if self._called else {"called": 1.0, "called_right": float(right)}
        self._called = True
        return Observation(self._registers[register], reward=reward, anchor="read", metrics=metrics)

    def step(self, turn: Turn) -> Observation:
        solved = turn.finish == "stop" and turn.text == self._registers[self._key]
        metrics = {"solved": float(solved)}
        if solved or self._called:
            is_digit = turn.finish == "stop" and len(turn.text) == 1 and turn.text in "0123456789"
            return Observation(reward=1.0 if solved else self.form * is_digit, done=True, metrics=metrics)
        first, second, third = (turn.text + "   ")[:3]
        pieces = (first == "[") + (second in "0123456789") + (third == "]")
        return Observation(reward=self.form * pieces / 4, done=True, metrics=metrics)
