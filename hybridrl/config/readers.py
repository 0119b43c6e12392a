"""Finds who reads a config key, in the source, so that the answer is never out of date. A test fails on an
unread key.

A read is an attribute of something that is known to be the key's section: `cfg.parallel.tp`, a variable that
was assigned `cfg.parallel`, or a name that is annotated with the section's class.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from hybridrl.config import keys

_PACKAGE = Path(__file__).parents[1]

Read = tuple[str, str]
"""Class name of a section, and name of its field."""


def readers(dotted: str) -> list[str]:
    """Places outside config/ that read a key of one of keys.ROOTS, as "trainer/policy.py:31"."""
    section, name = _field(dotted)
    owners = [kind.__name__ for kind in section.__mro__ if kind.__name__ in sections()]
    return list(dict.fromkeys(place for owner in owners for place in _reads().get((owner, name), [])))


def _field(dotted: str) -> tuple[type[BaseModel], str]:
    """Section class and Python name of a key: the name differs where Python has the word taken (kl.place)."""
    root = keys.root_of(dotted)
    assert root is not None, f"there is no key {dotted}"
    inner: list[type[BaseModel]] = [root]
    owner, name = root, ""
    for word in dotted.split("."):
        assert inner, f"{dotted} goes through a value"
        owner, name, field = next(
            (kind, n, f) for kind in inner for n, f in kind.model_fields.items() if (f.alias or n) == word
        )
        inner = keys.sections_of(field)
    return owner, name


@cache
def _reads() -> dict[Read, list[str]]:
    found: dict[Read, list[str]] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        place = path.relative_to(_PACKAGE)
        if place.parts[0] != "config":
            for read, line in reads_of(ast.parse(path.read_text("utf-8"))):
                found.setdefault(read, []).append(f"{place}:{line}")
    return found


def reads_of(tree: ast.AST) -> Iterator[tuple[Read, int]]:
    """Every config field that a module reads, and the line."""
    kinds = names_of_sections(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            for kind in kinds.get(last_name(node.value), ()):
                yield (kind, node.attr), node.lineno


def names_of_sections(tree: ast.AST) -> dict[str, set[str]]:
    """Names that hold a section in a module -> class names of the sections that they may hold."""
    kinds = {name: set(found) for name, found in _section_fields().items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            words = {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)} & sections().keys()
            name = node.arg if isinstance(node, ast.arg) else last_name(node.target)
            kinds.setdefault(name, set()).update(words)
    for name, value in (pair for node in ast.walk(tree) for pair in _assigned(node)):
        kinds.setdefault(name, set()).update(kinds.get(last_name(value), ()))
    return kinds


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names that a statement assigns, and their values; `a, b = x, y` assigns two."""
    if isinstance(node, ast.NamedExpr):
        yield last_name(node.target), node.value
    for target in node.targets if isinstance(node, ast.Assign) else ():
        assert isinstance(node, ast.Assign)
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(map(last_name, target.elts), node.value.elts, strict=False)
        else:
            yield last_name(target), node.value


def last_name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


@cache
def _section_fields() -> dict[str, set[str]]:
    """Name of every field that holds a section, in any section -> class names of those sections."""
    found: dict[str, set[str]] = {}
    for kind in sections().values():
        for name, field in kind.model_fields.items():
            inner = {section.__name__ for section in keys.sections_of(field)}
            if inner:
                found.setdefault(name, set()).update(inner)
    return found


@cache
def sections() -> dict[str, type[BaseModel]]:
    """Sections by class name, and the classes that they are derived from."""
    inner = [
        kind for root in keys.ROOTS for key in keys.all_keys(root) for kind in keys.sections_of(key.field)
    ]
    kinds = [*keys.ROOTS, *inner]
    return {base.__name__: base for kind in kinds for base in kind.__mro__ if issubclass(base, BaseModel)}
