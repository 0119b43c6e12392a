"""Who reads a config key: found in the source, so that it is never out of date. A test fails on a key without
a reader.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hybridrl.config import keys

_PACKAGE = Path(__file__).parents[1]


def readers(dotted: str) -> list[str]:
    """Places outside config/ that read a key as an attribute, as "trainer/megatron/policy.py:31".

    Where an attribute of this name is read from its own section (`parallel.tp`), only such places are named.
    """
    *sections, name = python_names(dotted)
    found = attributes().get(name, [])
    owners = {sections[-1], "self"} if sections else set()
    own = [place for owner, place in found if owner in owners]
    return list(dict.fromkeys(own or [place for _, place in found]))


def python_names(dotted: str) -> list[str]:
    """The attribute names of a dotted key, which differ where Python has the word taken (kl.place)."""
    names, section = [], keys.Config
    for word in dotted.split("."):
        name, field = next((n, f) for n, f in section.model_fields.items() if (f.alias or n) == word)
        names.append(name)
        section = keys.section_of(field.annotation) or section
    return names


@cache
def attributes() -> dict[str, list[tuple[str, str]]]:
    """Every attribute read of the project outside config/: its name -> (what it is read from, place)."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        place = path.relative_to(_PACKAGE)
        if place.parts[0] == "config":
            continue
        for name, owner, line in _reads(ast.parse(path.read_text("utf-8"))):
            found.setdefault(name, []).append((owner, f"{place}:{line}"))
    return found


def _reads(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            yield node.attr, getattr(owner, "attr", getattr(owner, "id", "")), node.lineno
