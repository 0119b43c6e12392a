"""Seconds of wall clock by span name.

A name runs while at least one of its spans is open, so a name that is entered again inside itself, or by
several asyncio tasks at once, counts each second once. Different names run independently: gen inside step
counts in both. Reading an open name takes the seconds so far; the next reading takes the later ones. A clock
is used from one thread, that of the driver's event loop.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Open:
    since: float
    """Time at which the name was entered, or last read."""

    depth: int
    entered: float


class Clock:
    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: dict[str, _Open] = {}
        self._spent_s: dict[str, float] = {}

    @property
    def running(self) -> list[tuple[str, float]]:
        """Open spans and their age in seconds, the oldest first. It may be read from any thread."""
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
                self._account(name)
                del self._open[name]

    def take(self) -> dict[str, float]:
        """Seconds of every name since the last call."""
        for name in self._open:
            self._account(name)
        spent_s, self._spent_s = self._spent_s, {}
        return spent_s

    def take_one(self, name: str) -> float | None:
        """Seconds of one name since the last reading. The name ends here: later seconds of its open spans are
        not counted.

        None: it has not run since the last reading.
        """
        if name in self._open:
            self._account(name)
            del self._open[name]
        return self._spent_s.pop(name, None)

    def _account(self, name: str) -> None:
        entered, now = self._open[name], self._now()
        self._spent_s[name] = self._spent_s.get(name, 0.0) + now - entered.since
        entered.since = now
