"""Pairs for a reward model: the last digit of a sum, and another digit."""

import random
from typing import Literal

from hybridrl.data.tasks.last_digit import last_digit
from hybridrl.registry import register


@register("task", "digit_pairs")
def digit_pairs(seed: int, *, part: Literal["train", "heldout"]) -> list[dict[str, str]]:
    """Rows with `prompt`, `chosen` and `rejected`, from the sums of last_digit.

    Args:
        seed: determines the order of the rows and the wrong digits.

    Raises:
        ConfigError: no such part.
    """
    draw = random.Random(seed)
    return [
        {"prompt": row["prompt"], "chosen": row["answer"], "rejected": _other(row["answer"], draw)}
        for row in last_digit(seed, part=part)
    ]


def _other(digit: str, draw: random.Random) -> str:
    return draw.choice([other for other in "0123456789" if other != digit])
