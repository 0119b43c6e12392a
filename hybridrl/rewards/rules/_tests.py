"""Reads the tests of a row, in the forms that public data sets of programming tasks carry.

    {"inputs": [...], "outputs": [...], "fn_name": ...}          APPS, TACO, verl's prime_code
    [{"input", "output", "testtype": "stdin" or "functional"}]   LiveCodeBench
    ["assert f(1) == 2", ...]                                    MBPP
    "def check(candidate): ..." with the column entry_point      HumanEval; any other Python code

A dict or list may come as JSON text. Pickled tests are never read.
"""

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FUNCTION_COLUMNS = ("fn_name", "func_name", "entry_point")
_SETUP_COLUMNS = ("test_setup_code", "test_imports")


@dataclass(frozen=True, slots=True)
class Program:
    """A case of a program that reads stdin and writes stdout."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Call:
    """A case of a function, or of a method of the class Solution."""

    function: str
    args: list[Any]
    expected: Any


@dataclass(frozen=True, slots=True)
class Asserts:
    """Python code that raises if the answer is wrong."""

    code: str
    setup: str
    remote: tuple[str, ...]
    """Names that the code uses and does not define: those that the answer has to define."""


Case = Program | Call | Asserts


def read_tests(row: Mapping[str, Any], answer_field: str) -> Sequence[Case]:
    """The cases of a row.

    Raises:
        ValueError: there are none, or they have another form.
    """
    found = _loaded(row.get(answer_field))
    cases: Sequence[Case]
    if isinstance(found, Mapping) and {"inputs", "outputs"} <= set(found):
        cases = _inputs_outputs(found, _function(row, found))
    elif isinstance(found, str):
        cases = [_asserts(found, row)]
    elif isinstance(found, Sequence) and found and all(isinstance(one, str) for one in found):
        cases = [_asserts(one, row) for one in found]
    elif isinstance(found, Sequence) and found and all(isinstance(one, Mapping) for one in found):
        cases = [_typed(one, _function(row, {})) for one in found]
    else:
        raise ValueError(f"column {answer_field} holds no tests of a known form: {found!r:.60}")
    if not cases:
        raise ValueError(f"column {answer_field} holds no test")
    return cases


def _loaded(value: Any) -> Any:
    """The value of JSON text; other text is code. Arrays of a data frame become lists."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value if isinstance(value, str) or not hasattr(value, "tolist") else value.tolist()


def _function(row: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The function that is called: named in the tests, in a column, or in the column metadata."""
    metadata = _loaded(row.get("metadata"))
    for source in (found, row, metadata if isinstance(metadata, Mapping) else {}):
        for name in _FUNCTION_COLUMNS:
            if source.get(name):
                return str(source[name])
    return None


def _inputs_outputs(found: Mapping[str, Any], function: str | None) -> list[Case]:
    inputs, outputs = list(found["inputs"]), list(found["outputs"])
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    if function is None:
        return [Program(_text(i), _text(o)) for i, o in zip(inputs, outputs, strict=True)]
    if all(isinstance(o, list) and len(o) == 1 for o in outputs):
        outputs = [o[0] for o in outputs]  # APPS has each value in a list
    return [Call(function, _arguments(i), o) for i, o in zip(inputs, outputs, strict=True)]


def _typed(found: Mapping[str, Any], function: str | None) -> Case:
    if not {"input", "output"} <= set(found):
        raise ValueError(f"a case without input and output: {sorted(map(str, found))}")
    if found.get("testtype", "stdin") == "stdin":
        return Program(_text(found["input"]), _text(found["output"]))
    if function is None:
        raise ValueError(f"a functional case, and no column of {', '.join(_FUNCTION_COLUMNS)} or metadata")
    return Call(function, _arguments(found["input"]), _value(str(found["output"])))


def _text(value: Any) -> str:
    """APPS has some inputs as lists of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _arguments(found: Any) -> list[Any]:
    """The arguments of a call: a list, or text with one JSON value a line."""
    if isinstance(found, str):
        return [_value(line) for line in found.splitlines() if line.strip()]
    if not isinstance(found, list):
        raise ValueError(f"arguments that are no list: {found!r:.60}")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"an argument or result that is no JSON: {text!r:.60}") from None


def _asserts(code: str, row: Mapping[str, Any]) -> Asserts:
    columns = [row.get(name) for name in _SETUP_COLUMNS]
    setup = "\n".join("\n".join(c) if isinstance(c, list) else str(c) for c in columns if c)
    function = _function(row, {})
    if function and "def check(" in code:
        code = f"{code}\ncheck({function})"
    try:
        unknown = _unknown_names(f"{setup}\n{code}")
    except SyntaxError as error:
        raise ValueError(f"tests that are no Python code: {error}") from None
    if not unknown:
        raise ValueError("tests that use nothing of the answer")
    return Asserts(code, setup, tuple(sorted(unknown)))


def _unknown_names(code: str) -> set[str]:
    """Names that code reads, and neither defines, imports nor takes as an argument."""
    read, known = set(), set(dir(builtins)) | {"__name__"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else known).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.alias):
            known.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            known.add(node.name)
    return read - known
