"""Small files, small functions. The lists of exceptions only shrink: an entry that is not needed fails."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
CODE = sorted([*ROOT.glob("hybridrl/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 400, 80, 10

LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function, its docstring included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    long = {str(p.relative_to(ROOT)) for p in CODE if len(p.read_text("utf-8").splitlines()) > FILE_LINES}
    assert long == LONG_FILES


def test_functions_are_short() -> None:
    assert {
        name for path in CODE for name, lines in functions(path) if lines > FUNCTION_LINES
    } == LONG_FUNCTIONS


def test_half_of_all_functions_are_shorter_than_ten_lines() -> None:
    lengths = [
        lines for path in CODE if path.is_relative_to(ROOT / "hybridrl") for _, lines in functions(path)
    ]
    assert median(lengths) <= MEDIAN_LINES
