"""Scored groups between rollout and training, with the one staleness mechanism: a bounded number of slots.

A prompt takes a slot before it is answered and frees it when the policy update that trains on it is in the
engines. With (max_lag + 1) * prompts_per_step slots, step k therefore only sees answers of version k - 1 -
max_lag or newer.
"""

import asyncio
from collections import deque

from hybridrl.types import Group


class RolloutBuffer:
    """First in, first out, so a straggler delays its step instead of growing stale.

    One producer: reserve, then put. One consumer: take, then release.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = num_slots
        self._groups: deque[Group] = deque()
        self._changed = asyncio.Condition()
        self._failure: BaseException | None = None

    async def reserve(self, count: int) -> None:
        """Wait until `count` slots are free and take them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= count)
            self._free -= count

    async def put(self, groups: list[Group]) -> None:
        """Fill slots that were reserved."""
        async with self._changed:
            self._groups.extend(groups)
            self._changed.notify_all()

    async def fail(self, error: BaseException) -> None:
        """Let the consumer raise `error` from its next take: nothing more will come."""
        async with self._changed:
            self._failure = error
            self._changed.notify_all()

    async def take(self, count: int) -> list[Group]:
        """Wait for the oldest `count` groups. Their slots stay taken until release."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._groups) >= count or self._failure is not None)
            if len(self._groups) < count and self._failure is not None:
                raise self._failure
            return [self._groups.popleft() for _ in range(count)]

    async def release(self, count: int) -> None:
        """Free the slots of groups that were trained on."""
        async with self._changed:
            self._free += count
            self._changed.notify_all()
