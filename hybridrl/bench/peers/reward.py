"""The reward of runs that are compared with peers. It imports nothing: each peer's program imports it."""

import zlib
from typing import Any


def spread(answer: str, row: Any = None) -> float:
    """A number from 0 to 1 that follows from the answer's text and is nearly always another for another text.

    A group of equal rewards has no gradient, and frameworks differ in whether they compute one.
    """
    return zlib.crc32(answer.encode("utf-8", "replace")) / 0xFFFFFFFF
