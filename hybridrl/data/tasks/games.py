"""Rows for an environment that makes its worlds from the seed of an episode: a prompt and a number each."""

from typing import Any, Literal

from hybridrl.data.tasks._games import game_numbers
from hybridrl.registry import register


@register("task", "games")
def games(
    seed: int, *, part: Literal["train", "heldout"], prompt: str = "", size: int = 2000
) -> list[dict[str, Any]]:
    """Rows with `prompt`, and `game`, a number that no other row has.

    Args:
        prompt: what the policy reads before what the environment says.
        size: number of games.

    Raises:
        ConfigError: no such part.
    """
    return [{"prompt": prompt, "game": game} for game in game_numbers("games", seed, part=part, size=size)]
