"""The places of requests inside an engine: a limit on their number, and a door that a swap closes."""

import asyncio
import heapq
import itertools


class Places:
    """All calls come from one event loop."""

    def __init__(self, most: int | None) -> None:
        """
        Args:
            most: number of places; None: any number.
        """
        self._most = most
        self._numbers = itertools.count()
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        """A heap of (goes last, number, future); the futures of those that gave up are done."""

        self.closed = False
        """Whether nobody is let in."""

        self.taken = 0

    async def enter(self, *, first: bool = False) -> None:
        """Wait for a place and take it.

        Args:
            first: whether this request goes before those that wait without this argument.
        """
        number = next(self._numbers)
        while self.closed or self._free <= 0:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (not first, number, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self._admit()  # if it was let in already, the place is another's
                raise
        self.taken += 1

    def leave(self) -> None:
        self.taken -= 1
        self._admit()

    def close(self) -> None:
        """Let nobody in until `open`; those inside stay."""
        self.closed = True

    def open(self) -> None:
        self.closed = False
        self._admit()

    @property
    def _free(self) -> int:
        return len(self._waiting) + 1 if self._most is None else self._most - self.taken

    def _admit(self) -> None:
        """Let as many in as there are places. They take them when they run, unless the door closes before."""
        free = 0 if self.closed else self._free
        while free > 0 and self._waiting:
            turn = heapq.heappop(self._waiting)[-1]
            if not turn.done():
                turn.set_result(None)
                free -= 1
