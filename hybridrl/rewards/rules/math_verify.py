"""1 for an answer that is mathematically equal to the reference, by the math-verify library, else 0.

The reference is LaTeX or plain notation, bare (\\frac12), delimited ($x+1$), boxed, or at the end of a
sentence. In the answer the library looks for the last boxed, delimited or plain expression.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import math_verify

from hybridrl.registry import register
from hybridrl.rewards.rules._text import extracted_reference

# The library logs every answer that it cannot parse in time; during training that is most of a log.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_WORD = re.compile(r"(?<![\\{\w])[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp sqrt max min gcd lcm mod".split()
)


@register("reward", "math_verify")
@dataclass(frozen=True, kw_only=True, slots=True)
class MathVerify:
    stage_timeout_s: int = 1
    """Parsing the answer, and each comparison, may take this long; an answer that takes longer earns 0."""

    extract_reference: str | None = None
    """Pattern whose last match in the reference is used (its first group, where it has one); no match is an
    error. None: the whole reference."""

    hang_score: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        re.compile(self.extract_reference or "")
        if self.stage_timeout_s < 1:
            raise ValueError(f"stage_timeout_s = {self.stage_timeout_s} is not a positive number of seconds")

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> float:
        right = _parse_reference(
            extracted_reference(row, answer_field, self.extract_reference), self.stage_timeout_s
        )
        found = math_verify.parse(answer, parsing_timeout=self.stage_timeout_s) if right else []
        return float(bool(found) and math_verify.verify(right, found, timeout_seconds=self.stage_timeout_s))

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str:
        return _delimited(extracted_reference(row, answer_field, self.extract_reference))


@lru_cache(maxsize=4096)  # every answer of a group is compared with the same reference
def _parse_reference(text: str, timeout_s: int) -> list:
    return math_verify.parse(_delimited(text), parsing_timeout=timeout_s)


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
