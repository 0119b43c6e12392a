"""Checks what a reward returned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    """Reward of one answer; every number is finite."""

    reward: float
    parts: dict[str, float]
    """Named components, for metrics; empty if the reward returned a bare number."""


def read_score(returned: Any) -> Score:
    """A Score from what a reward returned: a number, or a mapping with "reward" and parts.

    Raises:
        ValueError: something in it is not a finite number; the message says what.
    """
    if not isinstance(returned, Mapping):
        return Score(_number(returned, "returned"), {})
    if "reward" not in returned:
        raise ValueError(f"returned a mapping without 'reward': {sorted(map(str, returned))}")
    parts = {str(name): _number(value, f"returned {name} =") for name, value in returned.items()}
    return Score(parts.pop("reward"), parts)


def _number(value: Any, what: str) -> float:
    # Scalars of numpy and torch know item(); bool is a number here, since many rewards return a comparison.
    value = value.item() if hasattr(value, "item") and not isinstance(value, type) else value
    if not isinstance(value, (int, float)):
        raise ValueError(f"{what} {value!r:.80}, which is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{what} {value}, which is not finite")
    return float(value)
