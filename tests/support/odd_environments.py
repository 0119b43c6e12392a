"""Environments that misbehave, one way each; the tests of their processes name them by file."""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hybridrl.environments.base import Observation, Turn, tool
from hybridrl.sandbox.box import Box


class Counts:
    """It behaves: it counts its turns, and says what it was given."""

    def __init__(self, *, turns: int = 3) -> None:
        self._turns, self._taken = turns, 0

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation(f"{row.get('prompt')} {seed}")

    def step(self, turn: Turn) -> Observation:
        self._taken += 1
        said = f"{self._taken} {turn.text}"
        return Observation(said, reward=0.5, done=self._taken == self._turns, anchor=self._taken)


class AsyncCounts(Counts):
    async def step(self, turn: Turn) -> Observation:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().step(turn)

    async def close(self) -> None:
        await asyncio.sleep(0)


class Faulty(Counts):
    """It does what the text of a turn says."""

    def step(self, turn: Turn) -> Any:
        match turn.text:
            case "hang":
                time.sleep(1000)
            case "die":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), 9)
            case "raise":
                raise ValueError("no such move")
            case "nan":
                return Observation(reward=float("nan"))
            case "list":
                return ["a list"]
            case "role":
                return Observation([{"role": "king", "content": "x"}])
            case "variables":
                return " ".join(sorted(os.environ))
            case "print":
                print("noise")
        return super().step(turn)


class Moody(Counts):
    """A few worlds misbehave the first time that one of them is played: they hang, crash or lie."""

    def __init__(self, *, folder: str) -> None:
        super().__init__(turns=3)
        self._folder = Path(folder)

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._mood = seed % 12
        return Observation("")

    def step(self, turn: Turn) -> Observation:
        mark = self._folder / str(self._mood)
        if self._mood < 3 and not mark.exists():
            mark.touch()
            if self._mood == 0:
                time.sleep(1000)
            if self._mood == 1:
                os._exit(3)
            return Observation(reward=float("nan"))
        self._taken += 1
        return Observation("1", reward=0.1 * len(turn.text), done=self._taken == 3)


class HangsAtReset(Counts):
    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        time.sleep(1000)
        return Observation()


class HangsAtClose(Counts):
    def close(self) -> None:
        time.sleep(1000)


class PaysAtReset(Counts):
    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation("x", reward=1.0)


class Dice(Counts):
    """It is not the same at equal seeds."""

    def step(self, turn: Turn) -> Observation:
        return Observation(str(random.random()), reward=random.random(), done=True)


class Pays(Counts):
    """Its rewards differ, and follow from what is said."""

    def step(self, turn: Turn) -> Observation:
        return Observation("next", reward=float(len(turn.text) % 5), done=turn.text.endswith("7"))


class Fragile(Pays):
    def step(self, turn: Turn) -> Observation:
        return Observation("next", reward=float(turn.text[0] == "a"), done=True)


class Holds(Pays):
    """It leaves a file open in each episode."""

    held: ClassVar[list[Any]] = []

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.held.append(open(os.devnull))
        return Observation("begin")


class WithTools(Counts):
    """It has tools of its own; an answer without a call ends the episode."""

    def step(self, turn: Turn) -> Observation:
        return Observation(reward=float(turn.text == "42"), done=True)

    @tool
    def add(self, a: int, b: int = 1) -> str:
        """Add two numbers.

        Args:
            a: the first.
            b: the second.
        """
        return str(a + b)

    @tool
    async def sleep(self, hundredths: float) -> str:
        """Sleep for some hundredths of a second."""
        await asyncio.sleep(hundredths / 100)
        return "awake"

    @tool
    def fail(self) -> str:
        """Fail."""
        raise RuntimeError("it is broken")


class WithoutStep:
    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation()


class WrongStep(WithoutStep):
    def step(self) -> Observation:
        return Observation()


class WithoutHints(Counts):
    @tool
    def search(self, query) -> str:  # type: ignore[no-untyped-def]
        """Search."""
        return str(query)


class WithoutDocstring(Counts):
    @tool
    def search(self, query: str) -> str:
        return query


def search(query: str, limit: int = 3) -> list[str]:
    """Search a library for a text.

    Args:
        query: what to look for.
        limit: most results.
    """
    return [f"{query} {i}" for i in range(limit)]


def untyped(query):  # type: ignore[no-untyped-def]
    """Search."""
    return query


class Shell:
    """It runs what the policy says as Python in the box of the episode."""

    box: Box

    async def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation("a shell")

    async def step(self, turn: Turn) -> Observation:
        return Observation((await self.box.python(turn.text)).text)


class SaysWhere(Counts):
    """It writes down which process has started its own."""

    def __init__(self, *, folder: str) -> None:
        super().__init__(turns=3)
        parent = os.getppid()
        (Path(folder) / str(parent)).write_bytes(Path(f"/proc/{parent}/cmdline").read_bytes())

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        return Observation("")

    def step(self, turn: Turn) -> Observation:
        self._taken += 1
        return Observation("1", reward=0.1 * len(turn.text), done=self._taken == 3)


class Duel:
    """A game of two agents, who say a digit in turn, twice each: the larger sum wins what the other loses."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._sums, self._turns = [0, 0], 0
        return Observation("")

    def step(self, turn: Turn) -> Observation:
        self._sums[turn.agent] += int(turn.text) if turn.text.isdecimal() else -1
        self._turns += 1
        if self._turns < 4:
            return Observation("+", agent=1 - turn.agent)
        won = float(self._sums[1] > self._sums[0]) - float(self._sums[1] < self._sums[0])
        return Observation(reward=won, rewards={0: -won}, done=True)
