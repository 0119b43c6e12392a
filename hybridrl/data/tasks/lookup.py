"""Games of the environment lookup: ten registers with a digit each, and one that is asked for."""

import random
from typing import Any, Literal

from hybridrl.data.tasks._games import game_numbers
from hybridrl.registry import register


@register("task", "lookup")
def lookup(seed: int, *, part: Literal["train", "heldout"], size: int = 2000) -> list[dict[str, Any]]:
    """Rows with `prompt`, `registers`, `register` (the number that is asked for), `answer` (the digit in it),
    and `game`, a number that no other row has.

    Args:
        size: number of games.

    Raises:
        ConfigError: no such part.
    """
    return [_game(number) for number in game_numbers("lookup", seed, part=part, size=size)]


def _game(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    registers, asked = "".join(draw.choices("0123456789", k=10)), draw.randrange(10)
    row = {"prompt": f"{asked}?", "registers": registers, "register": asked, "answer": registers[asked]}
    return row | {"game": number}
