"""The shell's integer arithmetic, once its variables are numbers."""

import ast
import operator
import re
from collections.abc import Callable, Mapping

_LARGEST = 2**63


def _quotient(left: int, right: int) -> int:
    """Division towards zero, as in C."""
    size = abs(left) // abs(right)
    return size if (left < 0) == (right < 0) else -size


def _remainder(left: int, right: int) -> int:
    return left - right * _quotient(left, right)


_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _quotient,
    ast.Mod: _remainder,
}


def changes(text: str) -> bool:
    """Whether an expression assigns to a variable."""
    return bool(re.search(r"\+\+|--|(?<![=!<>])=(?!=)|<<=|>>=", text))


def evaluate(text: str) -> int | None:
    """The value of + - * / % and brackets over whole numbers, or None for any other expression."""
    if not re.fullmatch(r"[0-9a-fA-FxX\s()+\-*/%]+", text) or "//" in text or "**" in text:
        return None
    try:
        found = _integer(ast.parse(" ".join(text.split()), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError, RecursionError):
        return None
    return found if -_LARGEST <= found < _LARGEST else None


def _integer(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_integer(node.operand)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_integer(node.left), _integer(node.right))
    raise KeyError(type(node).__name__)
