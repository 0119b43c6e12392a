"""Plays the tests of an answer in boxes. The answer's box holds its code and the inputs; expected outputs
stay here, and tests in Python run in a second box, to which the answer's functions are stand-ins.

So the answer cannot read what is expected, and cannot write the verdict: it is made from plain values.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from hybridrl.errors import SandboxError
from hybridrl.rewards.rules._tests import Asserts, Call, Case, Program
from hybridrl.sandbox.box import Box, Result
from hybridrl.sandbox.inside import values
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.places import Sandbox, open_sandbox

_TRIES = 2
"""Times that an answer is played where a box fails on its own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many cases an answer passed, and how many took too long."""

    passed: int
    late: int


class Judge:
    """Judges answers one after another, with boxes that wait ahead. It belongs to one process."""

    def __init__(self, place: str, limits: Limits) -> None:
        self._runner = asyncio.Runner()
        self._place, self._limits = place, limits
        self._sandbox: Sandbox | None = None

    def judge(
        self, code: str, cases: Sequence[Case], *, case_s: float, total_s: float, stop: bool
    ) -> Verdict:
        """
        Args:
            case_s, total_s: seconds of processor time of a case, and of all together. The clock on the wall
                is watched more generously: on a busy machine a right answer stays right.
            stop: end at the first case that is not passed.

        Raises:
            SandboxError: boxes fail, twice.
        """
        return self._runner.run(self._judge(code, cases, case_s, total_s, stop))

    def close(self) -> None:
        """End the boxes that wait."""
        if self._sandbox is not None:
            self._runner.run(self._sandbox.close())
        self._runner.close()

    async def _judge(
        self, code: str, cases: Sequence[Case], case_s: float, total_s: float, stop: bool
    ) -> Verdict:
        if self._sandbox is None:
            self._sandbox = open_sandbox(self._place, self._limits, ahead=1)
            await self._sandbox.start()
        for tries_left in reversed(range(_TRIES)):
            try:
                async with await self._sandbox.take() as box:
                    answer = Answer(box, code, self._sandbox.take, case_s, total_s)
                    return await answer.play(cases, stop)
            except SandboxError:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")


class Answer:
    """A program of a policy in its box."""

    def __init__(
        self, box: Box, code: str, second: Callable[[], Awaitable[Box]], case_s: float, total_s: float
    ) -> None:
        self._box, self._code, self._second = box, code, second
        self._case_s, self._left_s = case_s, total_s
        self._time_s = 3 * case_s + 3
        self._defined = False
        self._late = False
        self._faulty = False

    async def play(self, cases: Sequence[Case], stop: bool) -> Verdict:
        passed = late = 0
        for case in cases:
            if self._left_s <= 0:
                return Verdict(passed, len(cases) - passed)
            self._late = False
            right = await self._case(case)
            passed, late = passed + right, late + self._late
            if stop and not right:
                break
        return Verdict(passed, late)

    @property
    def _cpu_s(self) -> float:
        return min(self._case_s, max(self._left_s, 0.01))

    def _count(self, result: Result) -> None:
        self._left_s -= result.cpu_s
        self._late = self._late or result.ended in ("time", "cpu")

    async def _case(self, case: Case) -> bool:
        if isinstance(case, Program):
            result = await self._box.script(
                self._code, stdin=case.stdin.encode(), time_s=self._time_s, cpu_s=self._cpu_s
            )
            self._count(result)
            return result.ok and same_text(result.stdout.decode(errors="replace"), case.stdout)
        if not await self._define():
            return False
        return await (self._call(case) if isinstance(case, Call) else self._asserts(case))

    async def _define(self) -> bool:
        """Run the answer's code, so that its functions exist. A session that ended has to run it again."""
        if not self._defined and not self._faulty:
            result = await self._box.python(self._code, echo=False, time_s=self._time_s, cpu_s=self._cpu_s)
            self._count(result)
            self._defined, self._faulty = result.ok, not result.ok
        return self._defined

    async def _call(self, case: Call) -> bool:
        path: list[Any] = [case.function]
        if not (await self._ask("get", path))["ok"]:
            made = await self._ask("call", ["Solution"])
            path = [_number_of(made.get("value")), case.function]
        found = await self._ask("call", path, values.encode(case.args))
        if not found["ok"]:
            return False
        try:
            return same_value(values.decode(found["value"]), case.expected)
        except (values.NotPlain, RecursionError, OverflowError):
            return False

    async def _asserts(self, case: Asserts) -> bool:
        async with await self._second() as box:
            code = f"{case.setup}\n{case.code}"
            time_s = 3 * self._time_s  # a stand-in ends with the answer's own limit
            result = await box.python(code, time_s=time_s, echo=False, remote=case.remote, answer=self._relay)
            return result.ok

    async def _relay(self, question: Any) -> dict[str, Any]:
        """What the answer's box says to a question of the tests."""
        return await self._ask(question["how"], question["path"], question["args"], question["kwargs"])

    async def _ask(
        self, how: str, path: list[Any], args: list[Any] | None = None, kwargs: Any = None
    ) -> dict[str, Any]:
        """The answer in its own form, whatever the box says: {"ok": True, "value", "args"}, or an error."""
        question = {"how": how, "path": path, "args": args or [], "kwargs": kwargs or {"d": []}}
        if self._left_s <= 0 or not self._defined:
            return _failed("TimeoutError", "the answer had no time left")
        result = await self._box.call(question, time_s=self._time_s, cpu_s=self._cpu_s)
        self._count(result)
        self._defined = self._defined and not result.lost
        done = result.done or {}
        changed = done.get("args")
        if result.ok and "value" in done and isinstance(changed, list) and len(changed) == len(args or []):
            return {"ok": True, "value": done["value"], "args": changed}
        return _failed(str(done.get("error", "RuntimeError")), str(done.get("text", result.ended)))


def _failed(name: str, text: str) -> dict[str, Any]:
    return {"ok": False, "error": name[:100], "text": text[:2000]}


def _number_of(value: Any) -> int:
    """The number of an object of the answer's box; -1, which no object has, for any other value."""
    match value:
        case {"o": {"number": int(number)}}:
            return number
    return -1


def same_text(found: str, expected: str) -> bool:
    """Whether two outputs have the same lines, white space at their ends aside, or the same numbers."""
    mine, right = _lines(found), _lines(expected)
    if mine == right:
        return True
    return len(mine) == len(right) and all(map(_same_line, mine, right))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _same_line(found: str, expected: str) -> bool:
    mine, right = found.split(), expected.split()
    return len(mine) == len(right) and all(map(_same_word, mine, right))


def _same_word(found: str, expected: str) -> bool:
    if found == expected:
        return True
    try:
        return bool(Decimal(found) == Decimal(expected))
    except InvalidOperation:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Whether a function returned what JSON says: a tuple is a list there, and 1e-9 is rounding."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None:
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        exact = isinstance(found, int) and isinstance(expected, int)
        return found == expected if exact else math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(found, list | tuple) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        named = {str(key): value for key, value in found.items()}
        return set(named) == set(expected) and all(same_value(named[k], expected[k]) for k in expected)
    return type(found) is type(expected) and found == expected


def limits_of(memory_mb: int, total_s: float) -> Limits:
    """The limits of a box for answers."""
    return replace(Limits(), memory_mb=memory_mb, cpu_s=math.ceil(total_s) + 1)
