"""1 for an expression that makes the target from the numbers, format_score for another one, 0 for none.

The reward scores rows of the task hybridrl.data.tasks.countdown, or of data with columns for numbers and
target. The
expression is the text of the last <answer> </answer>. It is parsed, never evaluated as code.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from hybridrl.registry import register
from hybridrl.rewards.reference import plain_text
from hybridrl.rewards.rules._final import ANSWER
from hybridrl.rewards.rules._text import last_match

_LONGEST = 256
"""Most characters of an expression, which bounds its depth."""

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@register("reward", "countdown")
@dataclass(frozen=True, kw_only=True, slots=True)
class Countdown:
    format_score: float = 0.1
    """Reward of a wrong answer inside the tags: another value, other numbers, or no expression at all."""

    use: Literal["all", "some"] = "all"
    """all: every number exactly once; some: each at most once."""

    numbers_field: str = "numbers"
    """Column with the list of numbers."""

    target_field: str = "target"
    """Column with the target."""

    def __post_init__(self) -> None:
        if self.use not in ("all", "some"):
            raise ValueError(f"use = {self.use!r} is neither all nor some")
        if not 0 <= self.format_score < 1:
            raise ValueError(f"format_score = {self.format_score} is not in [0, 1)")

    def __call__(self, answer: str, row: Mapping[str, Any]) -> dict[str, float]:
        """The reward, and whether the puzzle is solved.

        Raises:
            ValueError: the row has no numbers or no target.
        """
        given, target = Counter(self._numbers(row)), self._target(row)
        found = last_match(ANSWER, answer)
        solved = found is not None and self._solves(found, given, target)
        reward = 1.0 if solved else self.format_score if found is not None else 0.0
        return {"reward": reward, "solved": float(solved)}

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        return f"<answer>{plain_text(row[answer_field])}</answer>" if row.get(answer_field) else None

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return self.numbers_field, self.target_field

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        if not self._numbers(row):
            raise ValueError(f"{self.numbers_field!r} is empty")
        self._target(row)

    def _solves(self, text: str, given: Counter[int], target: Fraction) -> bool:
        tree = _parse(text)
        if tree is None:
            return False
        used = Counter(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        # Checked before the evaluation: only with the row's own numbers is the value known to stay small
        if used != given if self.use == "all" else not used <= given:
            return False
        try:
            return _value(tree) == target
        except ZeroDivisionError:
            return False

    def _numbers(self, row: Mapping[str, Any]) -> list[int]:
        numbers = self._column(row, self.numbers_field)
        try:
            return [int(number) for number in numbers]
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.numbers_field!r} is {numbers!r:.80}, not a list of numbers") from error

    def _target(self, row: Mapping[str, Any]) -> Fraction:
        target = self._column(row, self.target_field)
        try:
            return Fraction(target)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.target_field!r} is {target!r:.80}, not a number") from error

    def _column(self, row: Mapping[str, Any], name: str) -> Any:
        if name not in row:
            raise ValueError(f"the row has no {name!r}; it has {', '.join(map(str, row))}")
        return row[name]


def _parse(text: str) -> ast.expr | None:
    """The tree of an arithmetic expression of whole numbers; None: the text is not one."""
    text = text.strip()
    if len(text) > _LONGEST or not re.fullmatch(r"[\d+\-*/() ]+", text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return tree if all(_is_arithmetic(node) for node in ast.walk(tree)) else None


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    return isinstance(node, (ast.BinOp, ast.UnaryOp, ast.USub, *_OPERATIONS))


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise AssertionError(f"{ast.dump(node)} was refused when it was parsed")
