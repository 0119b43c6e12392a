"""Numbers of games: each game follows from its number, and no number is in both parts of the data."""

import random
from typing import Literal

from hybridrl.errors import ConfigError

_HELDOUT_SHARE = 5
"""Every fifth number is held out."""


def game_numbers(task: str, seed: int, *, part: Literal["train", "heldout"], size: int) -> list[int]:
    """Different numbers of games of one part.

    Raises:
        ConfigError: no such part.
    """
    if part not in ("train", "heldout"):
        raise ConfigError(f"{task}: part = {part}", fix="use train or heldout")
    draw, found = random.Random(seed), dict[int, None]()
    while len(found) < size:
        number = draw.getrandbits(40)
        if (number % _HELDOUT_SHARE == 0) == (part == "heldout"):
            found[number] = None
    return list(found)
