"""Games of the environment kuhn_poker: two of three cards."""

import random
from typing import Any, Literal

from hybridrl.data.tasks._games import game_numbers
from hybridrl.registry import register


@register("task", "kuhn_poker")
def kuhn_poker(seed: int, *, part: Literal["train", "heldout"], size: int = 2000) -> list[dict[str, Any]]:
    """Rows with `prompt`, `cards` (those of seat 0 and seat 1, of J, Q and K), and `game`, a number that no
    other row has.

    Args:
        size: number of games.

    Raises:
        ConfigError: no such part.
    """
    return [
        {"prompt": ":", "cards": "".join(random.Random(game).sample("JQK", 2)), "game": game}
        for game in game_numbers("kuhn_poker", seed, part=part, size=size)
    ]
