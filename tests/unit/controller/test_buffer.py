"""The buffer's slots bound what is in flight; its failure reaches the consumer after what was already delivered."""

import asyncio

import pytest

from hybridrl.controller.buffer import RolloutBuffer


def test_reserve_waits_until_slots_are_released() -> None:
    async def scenario() -> list[str]:
        buffer, order = RolloutBuffer(2), []
        await buffer.reserve(2)

        async def producer() -> None:
            await buffer.reserve(2)
            order.append("reserved")

        waiting = asyncio.create_task(producer())
        await asyncio.sleep(0.01)
        order.append("released")
        await buffer.release(2)
        await waiting
        return order

    assert asyncio.run(scenario()) == ["released", "reserved"]


def test_take_returns_the_oldest_and_keeps_their_slots() -> None:
    async def scenario() -> tuple[list[int], bool]:
        buffer = RolloutBuffer(3)
        await buffer.reserve(3)
        await buffer.put([1, 2, 3])
        taken = await buffer.take(2)
        try:
            await asyncio.wait_for(buffer.reserve(1), 0.01)
        except TimeoutError:
            return taken, True
        return taken, False

    assert asyncio.run(scenario()) == ([1, 2], True)


def test_a_failure_is_raised_only_once_the_delivered_groups_are_used_up() -> None:
    async def scenario() -> list[int]:
        buffer = RolloutBuffer(4)
        await buffer.put([1, 2])
        await buffer.fail(OSError("gone"))
        first = await buffer.take(2)
        with pytest.raises(OSError, match="gone"):
            await buffer.take(2)
        return first

    assert asyncio.run(scenario()) == [1, 2]
