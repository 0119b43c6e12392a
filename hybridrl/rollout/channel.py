"""Calls from one process to another over a pipe: pickled and numbered, any number of them in flight.

A reader thread on each side waits for the other process. When the pipe closes, either side knows that the
other one is gone: the caller's futures fail, and the callee stops.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hybridrl.errors import EngineError, HybridRLError


@dataclass(frozen=True, slots=True)
class Call:
    number: int
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    number: int
    value: Any
    error: HybridRLError | None = None


class Caller:
    def __init__(self, connection: Connection, why_gone: Callable[[], EngineError]) -> None:
        """
        Args:
            why_gone: makes the error with which pending calls fail when the other side is gone.
        """
        self._connection, self._why_gone = connection, why_gone
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._number = 0
        self._gone = False
        threading.Thread(target=self._read, daemon=True, name="engine-replies").start()

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method of the other side; returns the future of its result.

        Raises:
            EngineError: through the future, if the other side is gone or replied with one.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for the reader
        with self._lock:
            if self._gone:
                future.set_exception(self._why_gone())
                return future
            self._number += 1
            self._waiting[self._number] = future
            # If the other side is gone, the reader thread notices it too and completes the future.
            with contextlib.suppress(OSError):
                self._connection.send(Call(self._number, method, args))
        return future

    def hang_up(self) -> None:
        """Tell the other side that no call will follow. The reader thread ends when that side is gone."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(None)

    def _read(self) -> None:
        for reply in _received(self._connection):
            future = self._waiting.pop(reply.number)
            if reply.error is not None:
                future.set_exception(reply.error)
            else:
                future.set_result(reply.value)
        with self._lock:
            self._gone = True
            left, self._waiting = list(self._waiting.values()), {}
        self._connection.close()
        for future in left:
            future.set_exception(self._why_gone())


class Callee:
    """Answers calls with the coroutine methods of an object, on the event loop in which it was made."""

    def __init__(self, connection: Connection, methods: object) -> None:
        self._connection, self._methods = connection, methods
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer calls until the other side hangs up or is gone."""
        calls: asyncio.Queue[Call | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop, calls), daemon=True, name="engine-calls").start()
        while (call := await calls.get()) is not None:
            task = loop.create_task(self._answer(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _read(self, loop: asyncio.AbstractEventLoop, calls: asyncio.Queue[Call | None]) -> None:
        for call in _received(self._connection):
            loop.call_soon_threadsafe(calls.put_nowait, call)
        loop.call_soon_threadsafe(calls.put_nowait, None)

    async def _answer(self, call: Call) -> None:
        try:
            reply = Reply(call.number, await getattr(self._methods, call.method)(*call.args))
        except HybridRLError as error:
            reply = Reply(call.number, None, error)
        except Exception as error:  # process boundary: the caller gets the error
            reply = Reply(call.number, None, EngineError(f"{call.method}: {type(error).__name__}: {error}"))
        with contextlib.suppress(OSError):
            self._connection.send(reply)


def _received(connection: Connection) -> Iterator[Any]:
    """Messages until the other side hangs up or is gone."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        if message is None:
            return
        yield message
