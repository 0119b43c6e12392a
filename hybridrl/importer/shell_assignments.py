"""What the assignments of a shell script make of its variables."""

import re

from hybridrl.importer.shell_syntax import words_of
from hybridrl.importer.shell_words import (
    NAME,
    STARTED_WITH,
    Hidden,
    Unknown,
    Value,
    Variables,
    Word,
    expand,
    passes,
    value,
)

ASSIGNMENT = re.compile(rf"({NAME})(\[[^]\n]*\])?(\+?)=(.*)", re.DOTALL)
"""An assignment as written; its groups are the name, the place in an array, the plus of +=, and the right
side."""


def right_side(found: re.Match[str], known: Variables, line: int) -> Value:
    """The right side of an assignment, a match of ASSIGNMENT, with what is known now."""
    right = found[4]
    if right.startswith("("):
        inside = [word for one in words_of(right[1:-1]) for word in expand(one, known, line)]
        return (*inside, *([Word(line, "$@", STARTED_WITH)] if passes(right, known) else []))
    if passes(right, known):
        return Hidden(STARTED_WITH)
    try:
        return value(right, known)
    except Unknown as error:
        return Hidden(str(error))


def assign(known: Variables, found: re.Match[str], right: Value, line: int) -> None:
    """Sets the variable of an assignment to its right side, or adds this to its value where it says +=."""
    name, place, append = found[1], found[2], bool(found[3])
    # [key]=value names places: an array of another kind
    placed = isinstance(right, tuple) and any(re.match(r"\[.*\]=", word.text) for word in right)
    if name in known.declared:
        known.values[name] = Hidden(known.declared[name])
    elif place is not None or placed:
        known.values[name] = Hidden(f"${name}, set by places on line {line}")
    else:
        known.values[name] = _joined(name, known.values.get(name), right, line) if append else right


def _joined(name: str, before: Value, right: Value, line: int) -> Value:
    if isinstance(right, Hidden) or before is None:
        return right
    if isinstance(before, Hidden):
        return before
    if isinstance(right, tuple):
        return (*((Word(line, before),) if isinstance(before, str) else before), *right)
    return Hidden(f"${name}, set by += on line {line}") if isinstance(before, tuple) else f"{before}{right}"
