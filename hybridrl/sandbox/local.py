"""Boxes on this machine, a few of them started ahead."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hybridrl.errors import ResourceError, SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.start import Kind, Shared
from hybridrl.sandbox.support import inspect


class LocalSandbox:
    """Gives boxes of one kind and with the same limits. A box is never used again."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        ahead: int = 2,
        kind: Kind | None = None,
        shared: Shared | None = None,
    ) -> None:
        """
        Args:
            ahead: boxes that wait to be taken, and the most that start at a time.
            kind: None: the strongest that holds here.
            shared: what each box gets of this machine; only bubblewrap shares anything.
        """
        self.limits, self._shared = limits or Limits(), shared or Shared()
        self.kind: Kind | None = kind
        self._ahead = max(ahead, 1)
        self._waiting: asyncio.Queue[Box | SandboxError] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()
        self._taken: set[Box] = set()

    async def start(self) -> None:
        """Begin to start boxes.

        Raises:
            ResourceError: no kind of box holds on this machine.
        """
        if self.kind is None:
            support = await inspect()
            if support.kind is None:
                raise ResourceError("no box can be made here: " + support.why, fix=support.fix)
            if support.kind == "landlock" and self._shared.anything:
                raise ResourceError(
                    f"only boxes of bubblewrap have a network of their own, and none can be made here: "
                    f"{support.why}",
                    fix=support.fix,
                )
            self.kind = support.kind
        for _ in range(self._ahead):
            self._begin(self._start_one())

    async def take(self) -> Box:
        """A box that is up; the next one starts meanwhile.

        Raises:
            SandboxError: it could not be started.
        """
        self._begin(self._start_one())
        box = await self._waiting.get()
        if isinstance(box, SandboxError):
            raise box
        self._taken = {taken for taken in self._taken if not taken.closed}
        self._taken.add(box)
        return box

    async def close(self) -> None:
        """End all boxes, those that were taken too."""
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        while not self._waiting.empty():
            box = self._waiting.get_nowait()
            if isinstance(box, Box):
                self._taken.add(box)
        await asyncio.gather(*(box.close() for box in self._taken))
        self._taken.clear()

    async def __aenter__(self) -> "LocalSandbox":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start_one(self) -> None:
        assert self.kind is not None, "start() was not called"
        try:
            self._waiting.put_nowait(await Box.start(self.kind, self.limits, self._shared))
        except SandboxError as error:
            self._waiting.put_nowait(error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
