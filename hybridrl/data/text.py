"""What rows hold in place of text and messages: null fields, broken characters, messages as JSON text."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hybridrl.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")
"""A half of a pair that UTF-16 writes for one character. JSON can escape one without the other; no text has
one."""


def without_nulls(value: Any) -> Any:
    """The value without fields that are null, at any depth.

    Parquet gives every struct of a column the fields of all of them, and null where one had none.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(field) for key, field in value.items() if field is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def refuse_broken_text(row: Mapping[str, Any], place: str) -> None:
    """Refuse a row with text that cannot be written as UTF-8, in whichever column.

    Args:
        place: name of the row, for messages.

    Raises:
        DataError: names the key, as in messages[0].content.
    """
    for key, text in _texts(row, ""):
        if not text.isascii() and (found := _SURROGATE.search(text)):
            what = f"\\u{ord(found[0]):04x} without its other half at character {found.start() + 1}"
            raise DataError(
                f"{place}: {key} has {what}, which is no text",
                where=key,
                fix="write the whole character, or drop the row",
            )


def holds_messages(text: Any) -> bool:
    """Whether a text is a conversation that somebody wrote as JSON, or as Python prints it."""
    if not isinstance(text, str) or not re.match(r"\s*[\[{]", text) or "role" not in text:
        return False
    read = _parsed(text)
    messages = read if isinstance(read, list) else [read]
    return bool(messages) and all(
        isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages
    )


def messages_as_text(place: str, key: str) -> DataError:
    """The error for a column whose messages are text; the model would be asked the JSON."""
    return DataError(
        f"{place}: {key} holds chat messages written as JSON text, which the model would read as they are",
        where=f"column {key}",
        fix=f"store the list itself: row[{key!r}] = json.loads(row[{key!r}])",
    )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, text) of every text in a value; a field's name is a text too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, field in value.items():
            yield f"a name in {key}" if key else "a column's name", str(name)
            yield from _texts(field, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _texts(entry, f"{key}[{index}]")


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None
