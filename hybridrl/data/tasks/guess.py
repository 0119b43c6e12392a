"""Games of the environment guess: a hidden digit."""

import random
from typing import Any, Literal

from hybridrl.data.tasks._games import game_numbers
from hybridrl.registry import register


@register("task", "guess")
def guess(seed: int, *, part: Literal["train", "heldout"], size: int = 2000) -> list[dict[str, Any]]:
    """Rows with `prompt`, `answer` (the digit), and `game`, a number that no other row has.

    Args:
        size: number of games.

    Raises:
        ConfigError: no such part.
    """
    return [
        {"prompt": "=", "answer": str(random.Random(game).randrange(10)), "game": game}
        for game in game_numbers("guess", seed, part=part, size=size)
    ]
