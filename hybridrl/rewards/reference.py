"""The reference answer of a row as text, in which a number reads as people write it."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hybridrl.wording import json_kind


def reference(row: Mapping[str, Any], answer_field: str) -> str:
    """The reference answer of a row, as text.

    Raises:
        ValueError: the row has no reference, it is neither text nor a number, or it is empty, NaN or
            infinite: no answer could be right, or an empty one would be.
    """
    if answer_field not in row:
        raise ValueError(f"the row has no {answer_field!r}; it has {', '.join(map(str, row))}")
    value = row[answer_field]
    what = f"the reference {answer_field!r} is"
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{what} {value}, not a finite number")
        return number_text(value)
    if not isinstance(value, (str, bool)):
        raise ValueError(f"{what} {json_kind(value)}, not text or a number")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{what} empty")
    return text


def number_text(value: float | Decimal) -> str:
    """A finite number in positional notation, a whole one without a decimal point: 18.0 is "18"."""
    if isinstance(value, int):
        return str(value)
    shortest = (
        Decimal(repr(float(value))) if isinstance(value, float) else value
    )  # numpy's repr names its type
    text = format(shortest, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def plain_text(value: Any) -> str:
    """The text of a reference of any type: that of reference() for a number, Python's for everything else."""
    is_number = isinstance(value, (float, Decimal)) and math.isfinite(value)
    return number_text(value) if is_number else str(value)
