"""A second trainer backend or engine is one folder: no name outside of the first one's folder speaks of it.

Names are those that code is made of: variables, attributes, arguments, functions, classes, modules, and
strings that a module or a plug-in could be found by. Prose is free: docstrings, comments, messages.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "hybridrl"

TABLES = ("models/", "importer/", "hosts/", "doctor/", "observe/summary.py", "bench/")
"""A model table has a column for each library; another project's keys are read; the machine is prepared for
libraries and asked for their versions; a benchmark calls the libraries that it compares with."""

PLACES = {
    "megatron": ("trainer/megatron/", "layout/megatron.py", *TABLES),
    "sglang": ("rollout/sglang/", "layout/sglang.py", *TABLES),
}
"""Word -> where names may have it."""

DEFAULTS = {
    "megatron": "config/training.py",
    "sglang": "config/rollout.py",
}
"""Word -> the one file outside that has it as a string: the default of the key that chooses."""


def names(node: ast.AST) -> Iterator[str]:
    """What one node of a tree is called, or calls something by."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=aliases):
            yield from (part for alias in aliases for part in (alias.name, alias.asname or ""))
        case ast.ImportFrom(module=module, names=aliases):
            yield module or ""
            yield from (part for alias in aliases for part in (alias.name, alias.asname or ""))
        case ast.Constant(value=str(text)) if text.isascii() and not set(text) & set(" \n"):
            yield text


def speaks_of(word: str, tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every name that has the word."""
    return [
        (getattr(node, "lineno", 0), name)
        for node in ast.walk(tree)
        for name in names(node)
        if word in name.lower()
    ]


@pytest.mark.parametrize("word", ["megatron", "sglang"])
def test_names_stay_behind_their_seam(word: str) -> None:
    faults = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(PLACES[word]):
            continue
        found = speaks_of(word, ast.parse(path.read_text("utf-8")))
        if place == DEFAULTS[word] and [name for _, name in found] == [word]:
            continue
        faults += [f"{place}:{line}: {name}" for line, name in found]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "code",
    [
        "import megatron.core",
        "from megatron.core import parallel_state",
        "from hybridrl.layout import megatron",
        "class MegatronPolicy: ...",
        "def megatron_layout(): ...",
        "def make(megatron): ...",
        "make(megatron=1)",
        "row.megatron",
        "find('hybridrl.trainer.megatron')",
    ],
)
def test_names_are_found(code: str) -> None:
    assert speaks_of("megatron", ast.parse(code))


def test_prose_is_free() -> None:
    assert not speaks_of("megatron", ast.parse('"""Of Megatron."""\nraise ValueError("Megatron has none")'))
