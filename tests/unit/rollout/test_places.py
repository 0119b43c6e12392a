"""Places of requests inside an engine."""

import asyncio

from hybridrl.rollout.places import Places


async def settle():
    for _ in range(4):
        await asyncio.sleep(0)


def waiting(places, order, names, *, first=False):
    async def enter(name):
        await places.enter(first=first)
        order.append(name)

    return [asyncio.create_task(enter(name)) for name in names]


def test_places_are_taken_in_order_and_a_later_turn_goes_first():
    async def scenario():
        places, order = Places(1), []
        waiting(places, order, "ab")
        await settle()
        waiting(places, order, "c", first=True)
        for _ in range(2):
            await settle()
            places.leave()
        await settle()
        return order, places.taken

    assert asyncio.run(scenario()) == (["a", "c", "b"], 1)


def test_who_gives_up_after_being_let_in_passes_the_place_on():
    async def scenario():
        places, order = Places(1), []
        await places.enter()
        second, _ = waiting(places, order, "bc")
        await settle()
        places.leave()
        second.cancel()
        await settle()
        return order, places.taken

    assert asyncio.run(scenario()) == (["c"], 1)


def test_a_door_that_closes_again_at_once_lets_nobody_in_and_keeps_their_order():
    async def scenario():
        places, order = Places(None), []
        places.close()
        waiting(places, order, "abc")
        await settle()
        places.open()
        places.close()
        await settle()
        shut = list(order)
        places.open()
        await settle()
        return shut, order

    assert asyncio.run(scenario()) == ([], ["a", "b", "c"])
