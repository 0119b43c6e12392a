"""An event loop whose clock jumps to the next timer: hours of a run pass in the time that its code needs."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, it moves the clock."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits for another one")
        if not ready and timeout:
            self.passed_s += timeout
        return ready


class FakeClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds that have passed on the fake clock."""
        return self._jumping.passed_s


def run(job: Coroutine[Any, Any, Result]) -> Result:
    """Like asyncio.run, on a fake clock.

    Raises:
        RuntimeError: every task waits for another one, a deadlock.
    """
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(job)
