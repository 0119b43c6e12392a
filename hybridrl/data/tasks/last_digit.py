"""The last digit of a sum: "37+5=" is "2". All sums of a two-digit number and a digit, in two parts."""

import random
import zlib
from typing import Literal

from hybridrl.errors import ConfigError
from hybridrl.registry import register

_HELDOUT_SHARE = 5
"""Every fifth sum is held out."""


@register("task", "last_digit")
def last_digit(seed: int, *, part: Literal["train", "heldout"]) -> list[dict[str, str]]:
    """Rows with `prompt` and `answer`; 900 sums in both parts together.

    No sum is in both parts, whatever the seeds: its own text decides where it belongs.

    Args:
        seed: determines the order of the rows.

    Raises:
        ConfigError: no such part.
    """
    if part not in ("train", "heldout"):
        raise ConfigError(f"last_digit: part = {part}", fix="use train or heldout")
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)}
        for a in range(10, 100)
        for b in range(10)
        if _is_heldout(f"{a}+{b}=") == (part == "heldout")
    ]
    random.Random(seed).shuffle(rows)
    return rows


def _is_heldout(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % _HELDOUT_SHARE == 0
