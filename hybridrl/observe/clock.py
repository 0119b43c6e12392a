"""Seconds of wall clock by span name.

The rule: a name runs while at least one of its spans is open, so one entered again inside itself, or by
several asyncio tasks at once, counts each second once. Different names run independently: gen inside step
counts in both. Reading a name while it is open takes what it has so far; the rest is for the next reading.
Used from one thread, the one of the driver's event loop.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Open:
    since: float
    """When it was entered, or read."""

    depth: int
    entered: float


class Clock:
    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: dict[str, _Open] = {}
        self._spent_s: dict[str, float] = {}

    @property
    def running(self) -> list[tuple[str, float]]:
        """Open spans and their age in seconds, the oldest at the front. From any thread."""
        now = self._now()
        return [(name, now - span.entered) for name, span in list(self._open.items())]

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        now = self._now()
        entered = self._open.setdefault(name, _Open(since=now, depth=0, entered=now))
        entered.depth += 1
        try:
            yield
        finally:
            entered.depth -= 1
            if entered.depth == 0 and self._open.get(name) is entered:
                self._cut(name)
                del self._open[name]

    def take(self) -> dict[str, float]:
        """Seconds of every name since the last call."""
        for name in self._open:
            self._cut(name)
        spent_s, self._spent_s = self._spent_s, {}
        return spent_s

    def take_one(self, name: str) -> float | None:
        """Seconds of one name, which ends here: what its open spans still take is nobody's.

        None: it has not run since the last reading.
        """
        if name in self._open:
            self._cut(name)
            del self._open[name]
        return self._spent_s.pop(name, None)

    def _cut(self, name: str) -> None:
        entered, now = self._open[name], self._now()
        self._spent_s[name] = self._spent_s.get(name, 0.0) + now - entered.since
        entered.since = now
