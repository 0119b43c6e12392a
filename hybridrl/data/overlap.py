"""Finds held-out rows that are training rows too: what is measured on them is what was memorised."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hybridrl.data.tables import Table


def in_both(train: Table, heldout: Table, columns: Sequence[str]) -> list[int]:
    """Numbers of the held-out rows that have the same values in these columns as a training row.

    Raises:
        DataError: a row lacks one of the columns.
    """
    wanted = list(_keys(heldout, columns))
    missing = set(wanted)
    for key in _keys(train, columns):
        missing.discard(key)
    return [index for index, key in enumerate(wanted) if key not in missing]


def _keys(table: Table, columns: Sequence[str]) -> Iterator[Any]:
    """What is equal for equal rows: the text itself, or all values as JSON, with keys in one order."""
    if len(columns) == 1:
        for value in table.column(columns[0]):
            yield value if isinstance(value, str) else _as_json(value)
    else:
        yield from map(_as_json, table.columns(columns))


def _as_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
