"""Numbers, rows of data, JSON values and faults of JSON in sentences."""

import json
from typing import Any


def counted(number: int, noun: str, plural: str = "", form: str = "") -> str:
    """A number and its noun: "1 prompt", "2 prompts".

    Args:
        plural: of the noun, where it is not the noun with an s.
        form: of the number, as in a format string: "," for 1,024.
    """
    return f"{number:{form}} {noun if number == 1 else plural or f'{noun}s'}"


def row_place(index: int, data: str) -> str:
    """The name of a row in messages, in which rows are counted from 1, as lines are.

    Args:
        index: its place in the table, from 0.
        data: name of the table.
    """
    return f"row {index + 1} of {data}"


def json_kind(value: Any) -> str:
    """What JSON calls a value that was read from it; Python's name for a value of another kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {type(None): "null", str: "text", int: "a number", float: "a number"}
    kinds |= {dict: "an object", list: "a list"}
    return kinds.get(type(value), type(value).__name__)


def json_fault(error: ValueError | RecursionError) -> str:
    """Why a text is not JSON, from the error of decoding and parsing it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    if isinstance(error, RecursionError):
        return "values inside values, deeper than can be read"
    return "a whole number with more digits than can be read"
