"""Countdown: make a target out of some numbers and + - * /, every number once. Solvable by construction.

train: {task: countdown, part: train, size: 20000, min_numbers: 3, max_numbers: 4}

The reward countdown judges the answers. Source: TinyZero, Pan et al. 2025, github.com/Jiayi-Pan/TinyZero,
which trains reasoning on it; its puzzles have three or four numbers below 100.
"""

import operator
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.errors import ConfigError
from hybridrl.registry import register
from hybridrl.wording import counted

_HELDOUT_SHARE = 5
"""Every fifth puzzle is held out."""

_TRIES = 2000
"""Consecutive draws without a new puzzle after which no more are expected."""

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True, slots=True)
class Term:
    """A subexpression of a solution."""

    value: int
    text: str


@register("task", "countdown")
def countdown(
    seed: int,
    *,
    part: Literal["train", "heldout"],
    size: int,
    min_numbers: int = 3,
    max_numbers: int = 4,
    max_value: int = 99,
    min_target: int = 10,
    max_target: int = 100,
    operators: Sequence[str] = ("+", "-", "*", "/"),
) -> list[dict[str, Any]]:
    """Rows with `prompt`, `numbers`, `target`, and `answer`: one solution of perhaps many.

    All puzzles differ, and none is in both parts, whatever the seeds. Every step of the solution is a whole
    number that is not negative.

    Args:
        size: number of rows.
        min_numbers, max_numbers: how many numbers a puzzle has.
        max_value: largest number; the smallest is 1.
        operators: those that a solution may use.

    Raises:
        ConfigError: no such part or operator, an empty range, or fewer puzzles of this kind than `size`.
    """
    if part not in ("train", "heldout"):
        raise ConfigError(f"countdown: part = {part}", fix="use train or heldout")
    if not operators or set(operators) - set(_OPERATIONS):
        raise ConfigError(f"countdown: operators = {list(operators)}", fix=f"use some of {list(_OPERATIONS)}")
    _check_range("numbers", 2, min_numbers, max_numbers)
    _check_range("target", 1, min_target, max_target)
    _check_range("value", 1, 1, max_value)
    draw, rows, misses = random.Random(seed), {}, 0
    while len(rows) < size and misses < _TRIES:
        numbers = [draw.randint(1, max_value) for _ in range(draw.randint(min_numbers, max_numbers))]
        solution, misses = _combine(draw, numbers, operators), misses + 1
        if solution is None or not min_target <= solution.value <= max_target:
            continue
        key = f"{sorted(numbers)}={solution.value}"
        if key not in rows and _is_heldout(key) == (part == "heldout"):
            rows[key], misses = _row(numbers, solution), 0
    if len(rows) < size:
        raise ConfigError(
            f"countdown: size = {size}, and only {counted(len(rows), 'puzzle')} of this kind were found",
            fix="more numbers or a larger max_value make more of them",
        )
    return list(rows.values())


def _check_range(name: str, least: int, low: int, high: int) -> None:
    if not least <= low <= high:
        raise ConfigError(
            f"countdown: min_{name} = {low}, max_{name} = {high}",
            fix=f"at least {least}, and the smaller one first",
        )


def _combine(draw: random.Random, numbers: Sequence[int], operators: Sequence[str]) -> Term | None:
    """Combines two terms at a time until one is left; None: no operator gives a whole number."""
    terms = [Term(number, str(number)) for number in numbers]
    while len(terms) > 1:
        pair = (terms.pop(draw.randrange(len(terms))) for _ in range(2))
        low, high = sorted(pair, key=lambda term: term.value)
        divides = low.value > 0 and high.value % low.value == 0
        possible = [name for name in operators if name != "/" or divides]
        if not possible:
            return None
        name = draw.choice(possible)
        terms.append(Term(_OPERATIONS[name](high.value, low.value), f"({high.text} {name} {low.text})"))
    return Term(terms[0].value, terms[0].text[1:-1])


def _row(numbers: list[int], solution: Term) -> dict[str, Any]:
    prompt = (
        f"Numbers: {', '.join(map(str, numbers))}. Target: {solution.value}. Combine the numbers with "
        "+, -, *, / and parentheses so that the result is the target. Every number must be used, and only "
        "once. Think step by step inside <think> </think>, then write the expression alone inside "
        "<answer> </answer>, as in <answer>(7 - 3) * 5</answer>."
    )
    return {"prompt": prompt, "numbers": numbers, "target": solution.value, "answer": solution.text}


def _is_heldout(key: str) -> bool:
    return zlib.crc32(key.encode()) % _HELDOUT_SHARE == 0
