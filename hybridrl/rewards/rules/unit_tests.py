"""1 for a Python program that passes the tests of its row, run in a box, else 0; or the share that it passes.

The program is the last fenced block of the answer, behind its thinking. The tests are the row's reference:
inputs and outputs of a program (APPS, TACO, LiveCodeBench), calls of a function, or assert statements (MBPP,
HumanEval).
"""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hybridrl.registry import register
from hybridrl.rewards.rules._boxed import Judge, limits_of
from hybridrl.rewards.rules._tests import read_tests
from hybridrl.sandbox.places import check_place

_FENCED = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_THOUGHT = "</think>"
_judges: dict[tuple[int, str, int, float], Judge] = {}
"""Process, place, memory and seconds -> the judge of that process: a forked process makes its own."""


@register("reward", "unit_tests")
@dataclass(frozen=True, kw_only=True, slots=True)
class UnitTests:
    case_s: float = 2.0
    """Seconds of processor time that a case may take; by the clock on the wall three times as long, and 3 s
    more."""

    total_s: float = 8.0
    """Seconds of processor time that all cases of an answer may take together; those that are left then are
    not passed. Keep it below timeout_s."""

    memory_mb: int = 512
    """MiB that the program may take."""

    score: Literal["all", "share"] = "all"
    """all: 1 if every case is passed, else 0; share: the share of cases that are passed."""

    bare: bool = False
    """Take the whole answer for the program where no block is fenced; else such an answer earns 0."""

    max_cases: int | None = None
    """Cases of a row that are run, the first ones. None: all."""

    solution_field: str | None = None
    """Column with a program that passes, for checks of the data. None: there is none."""

    sandbox: str = "local"
    """The place of the boxes that the program runs in. local: this machine."""

    hang_score: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.case_s <= self.total_s:
            raise ValueError(f"case_s = {self.case_s} and total_s = {self.total_s}: 0 < case_s <= total_s")
        if self.max_cases is not None and self.max_cases < 1:
            raise ValueError(f"max_cases = {self.max_cases} leaves no case")
        if self.memory_mb < 64:
            raise ValueError(f"memory_mb = {self.memory_mb}: Python needs 64")

    def warm_up(self) -> None:
        asyncio.run(check_place(self.sandbox))

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> dict[str, float]:
        cases = read_tests(row, answer_field)[: self.max_cases]
        code = program(answer, bare=self.bare)
        if code is None:
            return {"reward": 0.0, "passed": 0.0, "late": 0.0, "program": 0.0}
        verdict = self._judge().judge(
            code, cases, case_s=self.case_s, total_s=self.total_s, stop=self.score == "all"
        )
        share = verdict.passed / len(cases)
        reward = share if self.score == "share" else float(share == 1.0)
        return {"reward": reward, "passed": share, "late": verdict.late / len(cases), "program": 1.0}

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        read_tests(row, answer_field)

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        solution = row.get(self.solution_field or "")
        if solution is None:
            return None
        if (
            self.solution_field == "canonical_solution"
        ):  # HumanEval has the head of the function in the prompt
            solution = f"{row.get('prompt', '')}{solution}"
        return f"```python\n{solution}\n```"

    def _judge(self) -> Judge:
        key = (os.getpid(), self.sandbox, self.memory_mb, self.total_s)
        if key not in _judges:
            _judges[key] = Judge(self.sandbox, limits_of(self.memory_mb, self.total_s))
        return _judges[key]


def program(answer: str, *, bare: bool) -> str | None:
    """The program in an answer; None if there is none."""
    text = answer.rpartition(_THOUGHT)[2]
    blocks = _FENCED.findall(text)
    if blocks:
        return blocks[-1]
    return text if bare and "```" not in text and text.strip() else None
