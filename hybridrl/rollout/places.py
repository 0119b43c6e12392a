"""The places of requests inside an engine: a limit on their number, and a door that a swap closes."""

import asyncio
from collections import deque


class Places:
    """All calls come from one event loop."""

    def __init__(self, most: int | None) -> None:
        """
        Args:
            most: number of places; None: any number.
        """
        self._most = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.taken = 0

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, *, first: bool = False) -> None:
        """Wait for a place and take it.

        Args:
            first: whether this request goes before those that wait already.
        """
        while self._closed or (self._most is not None and self.taken >= self._most):
            turn = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if first else self._waiting.append)(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._admit()  # the place that this request would have taken
                raise
            first = True  # the door was closed again meanwhile: it keeps its turn
        self.taken += 1

    def leave(self) -> None:
        self.taken -= 1
        self._admit()

    def close(self) -> None:
        """Let nobody in until `open`; those inside stay."""
        self._closed = True

    def open(self) -> None:
        self._closed = False
        self._admit()

    def _admit(self) -> None:
        if self._closed:
            return
        free = len(self._waiting) if self._most is None else self._most - self.taken
        for _ in range(min(free, len(self._waiting))):
            self._waiting.popleft().set_result(None)
