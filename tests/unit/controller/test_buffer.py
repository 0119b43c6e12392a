"""The buffer's slots bound what is in flight; a failure arrives after what was already delivered."""

import asyncio

import pytest

from hybridrl.controller.buffer import RolloutBuffer, Rollouts


def rollouts(number: int) -> Rollouts:
    return Rollouts([], {"number": number})


def test_reserve_waits_until_a_slot_is_released() -> None:
    async def scenario() -> list[str]:
        buffer, order = RolloutBuffer(1), []
        await buffer.reserve()

        async def producer() -> None:
            await buffer.reserve()
            order.append("reserved")

        waiting = asyncio.create_task(producer())
        await asyncio.sleep(0.01)
        order.append("released")
        await buffer.release()
        await waiting
        return order

    assert asyncio.run(scenario()) == ["released", "reserved"]


def test_take_returns_the_oldest_and_keeps_its_slot() -> None:
    async def scenario() -> tuple[int, bool]:
        buffer = RolloutBuffer(2)
        for number in (1, 2):
            await buffer.reserve()
            await buffer.put(rollouts(number))
        taken = await buffer.take()
        try:
            await asyncio.wait_for(buffer.reserve(), 0.01)
        except TimeoutError:
            return taken.position["number"], True
        return taken.position["number"], False

    assert asyncio.run(scenario()) == (1, True)


def test_a_failure_is_raised_only_once_what_was_delivered_is_used_up() -> None:
    async def scenario() -> int:
        buffer = RolloutBuffer(2)
        await buffer.put(rollouts(1))
        await buffer.fail(OSError("gone"))
        first = await buffer.take()
        with pytest.raises(OSError, match="gone"):
            await buffer.take()
        return first.position["number"]

    assert asyncio.run(scenario()) == 1
