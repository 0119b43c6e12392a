"""Finds values that no config can mean: texts that cannot be written, values inside values without end, and
variables that nothing fills in.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hybridrl.config.strict_yaml import inline

DEEPEST = 50
"""Levels of lists and mappings inside one another; the deepest key has five."""

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_VARIABLE = re.compile(r"(?:^|/)\$(?:\{[\w.:-]+\}|[A-Za-z_]\w*)(?:/|$)|^\$\{[\w.:-]+\}|^~[\w-]*(?:/|$)")

KeyPath = tuple[str, ...]


def unreadable(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """The place of every text with NUL or half a character, and of values that are nested too deeply, and
    what is wrong with each.
    """
    if len(path) > DEEPEST:
        yield path, f"{'.'.join(path[:2])}: values inside values, more than {DEEPEST} levels deep"
    elif isinstance(value, str):
        if found := _NO_TEXT.search(value):
            yield path, f"{'.'.join(path)}: character {found.start() + 1} is {_named(found[0])}"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if found := _NO_TEXT.search(name):
                yield (*path, name), f"a key of {'.'.join(path) or 'the config'} has {_named(found[0])}"
            else:
                yield from unreadable(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from unreadable(inner, (*path, str(index)))


def is_variable(value: Any) -> bool:
    """Whether a text has a variable or a ~ where a shell would fill in a path or a value."""
    return isinstance(value, str) and not any(map(str.isspace, value)) and bool(_VARIABLE.search(value))


def not_filled_in(key: str, value: Any) -> tuple[str, str]:
    """What is wrong with such a text, and the fix."""
    what = f"{key} = {inline(value)}: a config fills in neither variables nor ~"
    return what, f'write it out, or let the shell fill it in: {key}="$NAME" on the command line'


def _named(character: str) -> str:
    if character == "\0":
        return "NUL (\\0), which no path and no text has"
    return f"\\u{ord(character):04x} without its other half, which is no text"
