"""Docstrings are sentences or noun phrases of their own, and names are the field's words.

A docstring must be readable without the name above it: "Rows of a batch." and not "Of a batch." A name uses
the words of an engineer who knows other frameworks: GLOSSARY has those for the words that are refused.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("hybridrl", "tests", "benchmarks")}
TREES = {path: ast.parse(path.read_text("utf-8"), str(path)) for paths in FILES.values() for path in paths}

HEADLESS = {"Of", "That", "Those", "Where", "With", "By"}
"""First words that continue the name above a docstring instead of beginning a phrase."""

GLOSSARY = {
    "seats": "placement",
    "crew": "workers",
    "deal": "partition",
    "dealt": "partitioned",
    "share_out": "partition",
    "nursery": "fork_server",
    "askable": "say what can be asked",
    "stretch": "flat_range",
    "stretches": "flat_ranges",
    "meet": "rendezvous",
    "meeting": "rendezvous",
}
"""Word of a snake_case or CamelCase name, or several -> the field's word."""

CLASSES = {"Half": "Side", "Wave": "Round", "Piece": "Chunk"}

LAYOUTS = {"cut": "sharding", "cuts": "shardings"}
LAYOUT_PACKAGES = ("config", "plan", "estimate", "launch", "verify", "layout", "models")
"""Packages in which a noun `cut` would be a parallel layout. A method `_cut` of another one may cut text."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Fault(NamedTuple):
    place: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.word!r}, write {self.instead}"


def headless_docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and first word of every docstring of a module, class, function or attribute that lacks a head."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if text.split():
                    if (first := text.split()[0].strip(",.:;")) in HEADLESS:
                        yield statement.lineno, first


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and identifier of everything that a module defines, imports, reads or passes by name."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield line, node.name
            case ast.Name():
                yield line, node.id
            case ast.Attribute():
                yield line, node.attr
            case ast.arg():
                yield line, node.arg
            case ast.keyword(arg=str(name)):
                yield line, name
            case ast.alias():
                yield line, node.name.rpartition(".")[2]
                yield line, node.asname or ""
            case ast.ImportFrom(module=str(module)):
                yield from ((line, part) for part in module.split("."))


def words(name: str) -> str:
    """The words of a name in snake_case: "LayerDeal" is "layer_deal"."""
    return "_".join(_WORDS.findall(name)).lower()


def dialect(name: str) -> tuple[str, str] | None:
    """The first word of the glossary in a name, and what to write instead; None: there is none."""
    inside = f"_{words(name)}_"
    found = ((word, instead) for word, instead in GLOSSARY.items() if f"_{word}_" in inside)
    return next(found, (name, CLASSES[name]) if name in CLASSES else None)


def layout_noun(name: str) -> tuple[str, str] | None:
    """The noun `cut` or `cuts` at the end of a name, and what to write instead; None: it has none."""
    last = words(name).rpartition("_")[2]
    return (name, LAYOUTS[last]) if last in LAYOUTS else None


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shown(faults: set[Fault]) -> str:
    return "\n".join(map(str, sorted(faults)))


def test_docstrings_have_a_head() -> None:
    faults = {
        Fault(place(path), line, word, f"what it is before '{word.lower()}', or a sentence")
        for path in FILES["hybridrl"]
        for line, word in headless_docstrings(TREES[path])
    }
    assert not faults, shown(faults)


@pytest.mark.parametrize("folder", FILES)
def test_names_are_the_fields_words(folder: str) -> None:
    faults = {
        Fault(place(path), line, *found)
        for path in FILES[folder]
        for line, name in names(TREES[path])
        if (found := dialect(name))
    }
    assert not faults, shown(faults)


@pytest.mark.parametrize("folder", FILES)
def test_files_are_named_in_the_fields_words(folder: str) -> None:
    parts = {(path, part) for path in FILES[folder] for part in path.relative_to(ROOT).with_suffix("").parts}
    faults = {Fault(place(path), 1, *found) for path, part in parts if (found := dialect(part))}
    assert not faults, shown(faults)


@pytest.mark.parametrize("package", LAYOUT_PACKAGES)
def test_a_parallel_layout_is_no_cut(package: str) -> None:
    faults = {
        Fault(place(path), line, *found)
        for path in FILES["hybridrl"]
        if path.is_relative_to(ROOT / "hybridrl" / package)
        for line, name in [*names(TREES[path]), (1, path.stem)]
        if (found := layout_noun(name))
    }
    assert not faults, shown(faults)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("LayerDeal", "deal"),
        ("_share_out_rows", "share_out"),
        ("meet_at", "meet"),
        ("HTTPMeeting", "meeting"),
        ("Stretches", "stretches"),
        ("Half", "Half"),
        ("half", None),
        ("ideal_size", None),
        ("shared_output", None),
        ("metres", None),
    ],
)
def test_a_word_is_found_in_a_name_and_not_in_a_longer_word(name: str, word: str | None) -> None:
    found = dialect(name)
    assert (found and found[0]) == word


@pytest.mark.parametrize(
    ("name", "refused"), [("trainer_cuts", True), ("_cut", True), ("cut", True), ("cutoff", False)]
)
def test_a_cut_is_found_at_the_end_of_a_name(name: str, refused: bool) -> None:
    assert bool(layout_noun(name)) == refused


def test_headless_docstrings_are_found_in_all_places() -> None:
    code = (
        '"""Where it is."""\n'
        "class A:\n"
        '    """Sizes of a batch."""\n'
        "    rows: int\n"
        '    """Of the batch."""\n'
        "    def b(self):\n"
        '        """With, or without."""\n'
    )
    assert list(headless_docstrings(ast.parse(code))) == [(1, "Where"), (5, "Of"), (7, "With")]
