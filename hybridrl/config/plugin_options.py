"""The project's plug-ins of a kind with what their code says about them: for lists and for the documents."""

import ast
import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hybridrl import registry


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    default: str | None
    """As YAML; None: it has to be given."""

    meaning: str
    """"" if the code does not say."""


@dataclass(frozen=True, slots=True)
class Described:
    name: str
    about: str
    """What its module says it is."""

    options: tuple[Option, ...]


def described(package: str) -> list[Described]:
    """Every plug-in of a package, by name."""
    return [_described(package, name) for name in registry.names(package)]


def _described(package: str, name: str) -> Described:
    plugin = registry.find(package, name)
    about, _, _ = (inspect.getdoc(inspect.getmodule(plugin)) or "").partition("\n\n")
    meanings = _meanings(plugin)
    options = (
        Option(p.name, None if p.default is p.empty else as_yaml(p.default), meanings.get(p.name, ""))
        for p in inspect.signature(plugin).parameters.values()
        if p.name not in ("seed", "answer", "row", "answer_field")  # filled in by the caller
    )
    return Described(name, re.sub(r"\s+", " ", about), tuple(options))


def as_yaml(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)


def _meanings(plugin: Callable[..., Any]) -> dict[str, str]:
    """What the lines under the fields of a class say of them."""
    found = {}
    if isinstance(plugin, type):
        (source,) = ast.parse(inspect.getsource(plugin)).body
        assert isinstance(source, ast.ClassDef)
        for node, after in itertools.pairwise(source.body):
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = re.sub(r"\s+", " ", ast.literal_eval(after.value))
                found[ast.unparse(node.target)] = text.removesuffix(".")
    return found
