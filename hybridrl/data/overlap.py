"""Finds held-out rows that are training rows too: what is measured on them is what was memorised."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hybridrl.data.tables import Table, columns_or_null


def in_both(train: Table, heldout: Table, columns: Sequence[str]) -> list[int]:
    """Numbers of the held-out rows that have the same values in these columns as a training row. A column
    that a row lacks counts as null.
    """
    wanted = list(_keys(heldout, columns))
    missing = set(wanted)
    for key in _keys(train, columns):
        missing.discard(key)
    return [index for index, key in enumerate(wanted) if key not in missing]


def _keys(table: Table, columns: Sequence[str]) -> Iterator[Any]:
    """What is equal for equal rows: the text itself, or all values as JSON, with keys in one order."""
    for values in columns_or_null(table, columns):
        single = values[0] if len(values) == 1 else None
        yield single if isinstance(single, str) else _as_json(values)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
