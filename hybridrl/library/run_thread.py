"""A thread in which a run lives, with an event loop of its own.

Whoever calls waits for the thread and needs no event loop; one that runs already, as in a notebook, is not
touched.

Who waits for whom: open() waits until the workers are up; call() waits for its coroutine; close() waits until
the workers have ended. A coroutine that is called while another one runs waits for it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Generic, TypeVar

Entered = TypeVar("Entered")
Inside = TypeVar("Inside")
Value = TypeVar("Value")


class RunThread(Generic[Entered, Inside]):
    def __init__(
        self,
        enter: Callable[[], AbstractContextManager[Entered]],
        workers: Callable[[Entered], AbstractAsyncContextManager[Inside]],
    ) -> None:
        """
        Args:
            enter: makes the outer context, which is entered and left outside of the event loop.
            workers: makes the inner one, in which coroutines are called.
        """
        self._enter, self._workers = enter, workers
        self._opened: Future[tuple[Entered, Inside]] = Future()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, name="hybridrl run", daemon=True)

    def open(self) -> tuple[Entered, Inside]:
        """Enter both contexts; raises what they raise."""
        self._thread.start()
        return self._opened.result()

    def call(self, make: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Run a coroutine in the thread; raises what it raises. An interrupt of the caller cancels it.

        Raises:
            RuntimeError: the thread is closed.
        """
        if self._ended.done() or not self._opened.done():
            raise RuntimeError("the run is closed")
        future = asyncio.run_coroutine_threadsafe(self._in_turn(make), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    @property
    def is_closed(self) -> bool:
        return self._ended.done()

    def close(self) -> None:
        """Leave both contexts; raises what leaving them raises. A second call does nothing."""
        if self._ended.done() or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._closing.set)
        self._ended.result()

    def _live(self) -> None:
        try:
            with self._enter() as entered:
                asyncio.run(self._serve(entered))
        except BaseException as error:  # goes to the caller's thread
            waiting = self._ended if self._opened.done() else self._opened
            waiting.set_exception(error)
        if not self._ended.done():
            self._ended.set_result(None)

    async def _serve(self, entered: Entered) -> None:
        self._loop, self._closing, self._turn = asyncio.get_running_loop(), asyncio.Event(), asyncio.Lock()
        async with self._workers(entered) as inside:
            self._opened.set_result((entered, inside))
            await self._closing.wait()

    async def _in_turn(self, make: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        async with self._turn:
            return await make()
