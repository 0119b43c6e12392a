"""Scored groups between rollout and training, with the one staleness mechanism: a bounded number of slots.

A slot is the groups of one policy update. It is taken before their prompts are answered and freed when the
update that trains on them is in the engines. With max_lag + 1 slots, step k therefore only sees answers of
version k - 1 - max_lag or newer.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridrl.types import Group


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The scored groups of one policy update."""

    groups: list[Group]
    position: Mapping[str, Any]
    """State of the prompt source after these groups, which a checkpoint of this update keeps."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the selection among the sampled groups."""


class RolloutBuffer:
    """First in, first out, so a straggler delays its step instead of growing stale.

    One producer: reserve, then put. One consumer: take, then release.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = num_slots
        self._filled: deque[Rollouts] = deque()
        self._changed = asyncio.Condition()
        self._failure: BaseException | None = None

    async def reserve(self) -> None:
        """Wait until a slot is free and take it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free > 0)
            self._free -= 1

    async def put(self, rollouts: Rollouts) -> None:
        """Fill a slot that was reserved."""
        async with self._changed:
            self._filled.append(rollouts)
            self._changed.notify_all()

    async def fail(self, error: BaseException) -> None:
        """Let the consumer raise `error` once it has taken what is here: nothing more will come."""
        async with self._changed:
            self._failure = error
            self._changed.notify_all()

    async def take(self) -> Rollouts:
        """Wait for the oldest slot's groups. The slot stays taken until release."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._filled or self._failure is not None)
            if not self._filled and self._failure is not None:
                raise self._failure
            return self._filled.popleft()

    async def release(self) -> None:
        """Free the slot of groups that were trained on."""
        async with self._changed:
            self._free += 1
            self._changed.notify_all()
