"""Says what goes on when something takes more than two seconds, and how far it is.

On a terminal a line renews itself and is gone in the end. In a file there is a line after two seconds, then
one after each time that is twice as long as the one before, at least every minute; and one at the end.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.text import Text

from hybridrl.observe.screen import Screen, open_screen
from hybridrl.observe.units import duration, size

FIRST_S = 2.0
"""What is done earlier is not mentioned."""

_LONGEST_GAP_S = 60.0
_FEW = 10
"""The time left is not estimated for fewer parts."""

_LABEL_WIDTH = 10


class Advance(Protocol):
    def __call__(self, done: float, total: float | None = None) -> None:
        """Say how far it is.

        Args:
            total: of how many; None: as before.
        """
        ...


@dataclass(slots=True)
class Amount:
    """How far something is. It is written by one thread and read by another."""

    unit: str
    done: float = 0.0
    total: float | None = None
    began: float = field(default_factory=time.monotonic)

    def advance(self, done: float, total: float | None = None) -> None:
        self.done, self.total = done, self.total if total is None else total

    def __str__(self) -> str:
        if not self.total:
            return self._one(self.done) if self.done else ""
        share = f"{min(1.0, self.done / self.total):.0%}"
        return f"{self._one(self.done, named=False)} of {self._one(self.total)} ({share}){self._left()}"

    def _one(self, amount: float, *, named: bool = True) -> str:
        if self.unit == "bytes":
            return size(amount)
        return f"{amount:,.0f} {self.unit}" if named else f"{amount:,.0f}"

    def _left(self) -> str:
        took = time.monotonic() - self.began
        if not self.total or self.total < _FEW or not 0 < self.done < self.total or took < FIRST_S:
            return ""
        return f", {duration(took / self.done * (self.total - self.done))} left"


@contextlib.contextmanager
def progress(label: str, text: str, unit: str = "", *, stream: TextIO | None = None) -> Iterator[Advance]:
    """Something that may take long goes on inside.

    Args:
        label: as in "download".
        unit: what is counted, as "prompts"; bytes are written as kB, MB, GB.
        stream: None: standard error, so that what a program reads of a command stays clean.

    Yields:
        A function that says how far it is; it may be called from any thread, or not at all.
    """
    with shown(open_screen(sys.stderr if stream is None else stream), label, text, unit) as advance:
        yield advance


@contextlib.contextmanager
def shown(screen: Screen, label: str, text: str, unit: str = "") -> Iterator[Advance]:
    """The same on a screen."""
    amount, over = Amount(unit), threading.Event()
    line = _line(label, text, amount)
    show = _renew if screen.live else _report
    thread = threading.Thread(target=show, args=(screen, line, over), name="progress", daemon=True)
    thread.start()
    try:
        yield amount.advance
    finally:
        over.set()
        thread.join()
    took = time.monotonic() - amount.began
    if took >= FIRST_S:
        screen.line(f"{label:<{_LABEL_WIDTH}}{text}: done in {duration(took)}")


@contextlib.contextmanager
def reported(screen: Screen, line: Callable[[], str]) -> Iterator[None]:
    """While something goes on inside, show a line again and again: on a screen that is not live, in the
    rhythm of a file."""
    over = threading.Event()
    thread = threading.Thread(target=_report, args=(screen, line, over), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _line(label: str, text: str, amount: Amount) -> Callable[[], str]:
    def line() -> str:
        far = str(amount)
        took = duration(time.monotonic() - amount.began)
        return f"{label:<{_LABEL_WIDTH}}{text}{f': {far}' if far else ' ...'}  {took}"

    return line


def _renew(screen: Screen, line: Callable[[], str], over: threading.Event) -> None:
    if over.wait(FIRST_S):
        return
    screen.show(lambda: Text(line(), "dim"))
    over.wait()
    screen.show(None)


def _report(screen: Screen, line: Callable[[], str], over: threading.Event) -> None:
    gap = FIRST_S
    while not over.wait(gap):
        screen.line(line())
        gap = min(2 * gap, _LONGEST_GAP_S)
