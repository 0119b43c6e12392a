"""Sums of digits whose result is a digit too: "3+0+4+1=" is "8". All there are, each in one of two parts."""

import random
import zlib
from itertools import product
from typing import Literal

from hybridrl.errors import ConfigError
from hybridrl.registry import register

_HELDOUT_SHARE = 5
"""Every fifth sum is held out."""


@register("task", "digit_sums")
def digit_sums(seed: int, *, terms: int, part: Literal["train", "heldout"]) -> list[dict[str, str]]:
    """Rows with `prompt` and `answer`.

    No sum is in both parts, whatever the seeds: its own text decides where it belongs.

    Args:
        seed: of the order of the rows.
        terms: digits to add; 4 make 715 sums, 5 make 2,002.

    Raises:
        ConfigError: no such part, or too few or too many terms.
    """
    if not 2 <= terms <= 6:
        raise ConfigError(f"digit_sums: terms = {terms}", fix="use 2 to 6")
    if part not in ("train", "heldout"):
        raise ConfigError(f"digit_sums: part = {part}", fix="use train or heldout")
    sums = [digits for digits in product(range(10), repeat=terms) if sum(digits) < 10]
    rows = [{"prompt": "+".join(map(str, digits)) + "=", "answer": str(sum(digits))} for digits in sums]
    rows = [row for row in rows if _is_heldout(row["prompt"]) == (part == "heldout")]
    random.Random(seed).shuffle(rows)
    return rows


def _is_heldout(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % _HELDOUT_SHARE == 0
