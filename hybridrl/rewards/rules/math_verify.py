"""1 for an answer that is mathematically equal to the reference, by the math-verify library, else 0.

The reference is LaTeX or plain notation, bare (\\frac12), delimited ($x+1$), boxed, or at the end of a
sentence. In the answer the library looks for the last boxed, delimited or plain expression; boxes a few words
apart make a set.
"""

import logging
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import FrameType, ModuleType
from typing import Any, ClassVar

from hybridrl.registry import register
from hybridrl.rewards.rules._text import extracted_reference

# The library warns that its own limits are off, and logs every answer that it cannot parse.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_WORD = re.compile(r"(?<![\\{\w])[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt max min gcd lcm mod".split()
)


@register("reward", "math_verify")
@dataclass(frozen=True, kw_only=True, slots=True)
class MathVerify:
    cpu_limit_s: float = 3.0
    """CPU time for one answer; one that takes longer to parse or to compare, like 9^9^9^9, earns 0."""

    extract_reference: str | None = None
    """Pattern whose last match in the reference is used (its first group, if it has one); no match is an
    error. None: the whole reference."""

    hang_score: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        re.compile(self.extract_reference or "")
        if self.cpu_limit_s <= 0:
            raise ValueError(f"cpu_limit_s = {self.cpu_limit_s} is not a positive number of seconds")

    def warm_up(self) -> None:
        _library()

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        right = extracted_reference(row, answer_field, self.extract_reference)
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
        return _delimited(extracted_reference(row, answer_field, self.extract_reference))


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
    found = _library().parse(answer, parsing_timeout=0) if right else []
    return bool(found) and _library().verify(right, found, timeout_seconds=0)


@lru_cache(maxsize=4096)  # every answer of a group is compared with the same reference
def _parse_reference(text: str) -> list:
    return _library().parse(_delimited(text), parsing_timeout=0)


def _delimited(text: str) -> str:
    # A bare "\frac12" or "(1,2)" is found only inside delimiters, and "10^{10}" is read as 10 without them.
    return text if _is_prose(text) else f"\\boxed{{{text}}}"


def _is_prose(text: str) -> bool:
    """Whether to look for an expression inside the text, instead of reading all of it as one.

    "the area is 5 cm" would be the product of its letters; "yes" and "Monday" are compared as such
    products, which works.
    """
    words = [word for word in _WORD.findall(text) if word not in _FUNCTIONS]
    return "\\boxed" in text or (bool(words) and any(c.isdigit() or c == "$" for c in text))
