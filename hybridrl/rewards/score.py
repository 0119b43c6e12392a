"""Checks what a reward returned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnreadableScore(ValueError):
    """Something that is not a finite number was returned; the message says what."""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward of one answer; every number is finite."""

    reward: float
    parts: dict[str, float]
    """Named components, for metrics; empty if the reward returned a bare number."""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """An answer has no reward, because a judge outside the scoring processes failed."""

    why: str
    """It begins with the kind of failure, as in "timeout: ..."."""


def read_score(returned: Any) -> Score:
    """A Score from what a reward returned: a number, or a mapping with "reward" and parts.

    Raises:
        UnreadableScore: something in it is not a finite number.
    """
    if not isinstance(returned, Mapping):
        return Score(_number(returned, "returned"), {})
    if "reward" not in returned:
        raise UnreadableScore(f"returned a mapping without 'reward': {sorted(map(str, returned))}")
    parts = {str(name): _number(value, f"returned {name} =") for name, value in returned.items()}
    return Score(parts.pop("reward"), parts)


def _number(value: Any, what: str) -> float:
    # Scalars of numpy and torch know item(); bool is a number here, since many rewards return a comparison.
    if hasattr(value, "item") and not isinstance(value, type):
        if math.prod(getattr(value, "shape", ())) != 1:
            raise UnreadableScore(f"{what} {value!r:.80}, which is not one number")
        value = value.item()
    if not isinstance(value, (int, float)):
        raise UnreadableScore(f"{what} {value!r:.80}, which is not a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise UnreadableScore(f"{what} a whole number that is too large for a float") from error
    if not math.isfinite(number):
        raise UnreadableScore(f"{what} {number}, which is not finite")
    return number
