"""A number and its noun agree, whatever the number is: "1 prompt", not "1 prompts"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "hybridrl"
PACKAGES = (
    *("cli", "launch", "plan", "config", "observe", "doctor", "estimate", "verify", "export", "importer"),
    *("data", "hosts", "errors.py"),
)
"""What writes for a person."""

NOUNS = (
    "answers batches bytes checkpoints chunks copies cores engines examples experts files GPUs groups keys "
    "labels layers metrics microbatches minibatches nodes numbers parameters parts pipelines ports positions "
    "processes prompts puzzles ranks records requests rounds rows runs samples sequences sessions stages "
    "steps swaps tensors tokens trajectories updates values weights workers"
)
_BETWEEN = "of|for|in|on|to|and|with|per|has|is|needs|cuts|the|its|a|x|from|beside"
_PLURAL = re.compile(rf"^ (?:[\w-]+ ){{0,2}}({NOUNS.replace(' ', '|')})\b(?!/s\b)")


def plurals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and words of each place of an f-string where a noun in the plural follows a value."""
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, text in zip(parts, parts[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                found = _PLURAL.match(str(text.value))
                if found and not _is_no_number(value, found[0]):
                    yield node.lineno, f"{ast.unparse(value.value)}{found[0]}"


def _is_no_number(value: ast.FormattedValue, words: str) -> bool:
    """The value is a name, the subject of what follows; an average; or words already."""
    is_name = re.match(rf" (?:\w+ )?({_BETWEEN}) ", words) or ast.unparse(value.value) in {"has", "recipe"}
    is_average = value.format_spec is not None and ast.unparse(value.format_spec).endswith("f'")
    is_words = isinstance(value.value, ast.Call) and ast.unparse(value.value.func) in {"counted", "_count"}
    return bool(is_name or is_average or is_words)


def test_nouns_agree_with_their_numbers() -> None:
    files = [path for name in PACKAGES for path in [ROOT / name, *sorted((ROOT / name).rglob("*.py"))]]
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in files
        if path.suffix == ".py"
        for line, words in plurals(ast.parse(path.read_text("utf-8")))
    ]
    assert not faults, "write counted(...) of hybridrl.wording:\n" + "\n".join(faults)


@pytest.mark.parametrize("code", ["f'{n} prompts'", "f'a {n:,} optimizer steps b'", "f'{a} of {b} rows'"])
def test_a_fixed_plural_is_found(code: str) -> None:
    assert list(plurals(ast.parse(code)))


@pytest.mark.parametrize("code", ["f'{counted(n, \"row\")} of it'", "f'{name} of rows'", "f'{n} is odd'"])
def test_other_words_are_none(code: str) -> None:
    assert not list(plurals(ast.parse(code)))
