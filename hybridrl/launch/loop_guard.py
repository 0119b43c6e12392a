"""Notices that the driver's own thread hangs: the deadlines of its event loop do not expire then.

Who waits for whom: a thread waits for the event loop, which says every so often that it goes on.
"""

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

_MOST_BEAT_S = 1.0


@contextlib.contextmanager
def guard(limit_s: float, hangs: Callable[[str], None]) -> Iterator[None]:
    """A context of a coroutine, in which `hangs` is called if the event loop stands still.

    Args:
        hangs: called in a thread, once, with the stack of the thread of the event loop.
    """
    found = _Guard(limit_s, hangs)
    beating = asyncio.create_task(found.beat())
    try:
        yield
    finally:
        found.stop()
        beating.cancel()


class _Guard:
    def __init__(self, limit_s: float, hangs: Callable[[str], None]) -> None:
        self._limit_s, self._hangs, self._every_s = limit_s, hangs, min(_MOST_BEAT_S, limit_s / 4)
        self._loop_thread, self._at, self._over = threading.get_ident(), time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="loop guard").start()

    async def beat(self) -> None:
        while True:
            self._at = time.monotonic()
            await asyncio.sleep(self._every_s)

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._over.wait(self._every_s):
            now = time.monotonic()
            if now - seen > self._limit_s:  # this process was stopped too, or the machine slept
                self._at = now
            seen = now
            if now - self._at > self._limit_s:
                self._hangs(self._stack())
                return

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "".join(traceback.format_stack(frame)) if frame else ""
