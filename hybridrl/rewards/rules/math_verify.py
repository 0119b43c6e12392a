"""1 for an answer that is mathematically equal to the reference, by the math-verify library, else 0.

The reference is LaTeX, plain or Unicode notation, bare (\\frac12, 2 2/3, √2), delimited ($x+1$), boxed,
with a unit, or at the end of a sentence. The answer is what the last <answer> </answer> holds, else the last
boxed, delimited or plain expression. Boxes joined by a comma, "and" or "or" make a set; a box that is never
closed is no answer.
"""

import logging
import math
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import FrameType, ModuleType
from typing import Any, ClassVar

from hybridrl.registry import register
from hybridrl.rewards.rules._final import delimited, final_part
from hybridrl.rewards.rules._text import extracted_reference

# The library warns that its own limits are off, and logs every answer that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_DIGITS = 6
"""Decimals of a number near 1 that have to agree where one side is a decimal fraction: 1/3 is 0.333333."""

_MOST_DIGITS = 1000

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""Errors of sympy on an expression that it cannot evaluate."""


@register("reward", "math_verify")
@dataclass(frozen=True, kw_only=True, slots=True)
class MathVerify:
    cpu_limit_s: float = 3.0
    """CPU time for one answer; one that takes longer to parse or to compare, like 9^9^9^9, earns 0."""

    extract_reference: str | None = None
    """Pattern whose last match in the reference is used (its first group, if it has one); no match is an
    error. None: the whole reference."""

    after: str | None = None
    """Text, such as </think>, behind whose last place the answer is read; an answer without it was cut inside
    its thinking, and earns 0. None: all of the answer is read."""

    hang_score: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.after == "":
            raise ValueError("after is empty: leave it out to read all of the answer")
        re.compile(self.extract_reference or "")
        if self.cpu_limit_s <= 0:
            raise ValueError(f"cpu_limit_s = {self.cpu_limit_s} is not a positive number of seconds")

    def warm_up(self) -> None:
        _library()

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        right = extracted_reference(row, answer_field, self.extract_reference)
        if self.after is not None:
            _, found, answer = answer.rpartition(self.after)
            if not found:
                return 0.0
        _library()  # outside the time limit of the answer
        # The library's limits are wall clock, which on a busy machine makes right answers wrong.
        signal.signal(signal.SIGPROF, _out_of_time)
        signal.setitimer(signal.ITIMER_PROF, self.cpu_limit_s)
        try:
            try:
                return float(_equal(right, answer))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except _OutOfTime:
            return 0.0

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str:
        right = extracted_reference(row, answer_field, self.extract_reference)
        return (self.after or "") + delimited(right)

    def columns(self, answer_field: str) -> tuple[str, ...]:
        return (answer_field,)

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        extracted_reference(row, answer_field, self.extract_reference)


class _OutOfTime(BaseException):
    """The time limit is over. It is not an Exception, since the library and sympy catch those."""


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise _OutOfTime


@cache
def _library() -> ModuleType:
    # Imported here: it takes 0.5 s, for which a check of the options need not wait.
    import math_verify

    # Sympy imports much of itself only when it compares.
    first, second = (math_verify.parse(text, parsing_timeout=0) for text in ("$(x+1)^2$", "$x^2+2x+1$"))
    math_verify.verify(first, second, timeout_seconds=0)
    return math_verify


def _equal(reference: str, answer: str) -> bool:
    right = _parse_reference(reference)
    found = _library().parse(final_part(answer), parsing_timeout=0) if right else []
    if not found:
        return False
    digits = _digits([*right, *found])
    precision = 15 + digits - _DIGITS
    return _library().verify(
        right, found, float_rounding=digits, numeric_precision=precision, timeout_seconds=0
    )


@lru_cache(maxsize=4096)  # every answer of a group is compared with the same reference
def _parse_reference(text: str) -> list:
    return _library().parse(delimited(text), parsing_timeout=0)


def _digits(sides: Sequence[Any]) -> int:
    """The decimals to which the library compares: its 6, and one more for each zero behind the point of the
    smallest number, so that small numbers are not all equal."""
    try:
        zeros = max((-_log10(number) for side in sides for number in _floats(side) if number), default=0.0)
    except UNREADABLE:  # the library cannot evaluate it either
        return _DIGITS
    return min(_DIGITS + max(int(zeros + 1e-9), 0), _MOST_DIGITS)


def _floats(value: Any) -> Iterator[Any]:
    """The numbers in what the library parsed, evaluated to three digits."""
    import sympy

    if isinstance(value, sympy.Expr):
        yield from value.evalf(3).atoms(sympy.Float)
    elif isinstance(value, (sympy.Basic, sympy.MatrixBase)):
        parts = value.flat() if isinstance(value, sympy.MatrixBase) else value.args
        for part in parts:
            yield from _floats(part)


def _log10(number: Any) -> float:
    _, mantissa, exponent, _ = number._mpf_  # its exponent does not fit into a float
    return math.log10(mantissa) + exponent * math.log10(2)
