"""Groups on two engines that finish them when they are told to."""

import asyncio

import pytest

from hybridrl.errors import EngineError
from hybridrl.rollout.groups import FinishedGroup
from hybridrl.types import GroupTask, Prompt, Sampling, Trajectory
from hybridrl.workers.open_groups import OpenGroups


class Method:
    """A method of an actor that returns metadata and a block, as Ray's options(num_returns=2) gives them."""

    def __init__(self, engine):
        self.engine = engine

    def options(self, num_returns):
        return self

    def remote(self):
        self.engine.polls += 1
        return self.engine.reports.get(), f"block {self.engine.polls} of {self.engine.rank}"


class Engine:
    def __init__(self, rank):
        self.rank, self.tickets, self.cancelled, self.polls = rank, [], [], 0
        self.reports = asyncio.Queue()
        self.finished = Method(self)

    def finish(self, *indices):
        """Report the latest tickets of these prompts."""
        numbers = {ticket.task.index: ticket.number for ticket in self.tickets}
        self.report([numbers[index] for index in indices])

    def report(self, numbers):
        found = [Trajectory(0, 1, 1, 1, "stop", 0)]
        self.reports.put_nowait([FinishedGroup(number, found, None) for number in numbers])


class Workers:
    """The part of a WorkerGroup that is used."""

    def __init__(self, count):
        self.actors = [Engine(rank) for rank in range(count)]

    def __len__(self):
        return len(self.actors)

    async def one(self, rank, method, argument):
        await asyncio.sleep(0)
        kept = {"submit": self.actors[rank].tickets, "cancel": self.actors[rank].cancelled}[method]
        kept.extend(argument)

    async def result(self, rank, method, waiting):
        found = await waiting
        if isinstance(found, Exception):
            raise found
        return found


def task(index, samples=1):
    return GroupTask(
        index=index,
        prompt=Prompt(f"train/{index}", (1,), {}),
        sampling=Sampling(num_samples=samples, max_response_tokens=1),
    )


def indices(engine):
    return [ticket.task.index for ticket in engine.tickets]


def test_groups_go_to_the_engine_with_the_least_work_and_come_back_with_their_block():
    async def scenario():
        groups = OpenGroups(workers := Workers(2))
        first, second = workers.actors
        await groups.submit([task(0, samples=4), task(1), task(2), task(3)])
        placed = indices(first), indices(second)
        second.finish(2, 1)
        found = await groups.completed()
        await groups.submit([task(4, samples=4)])
        groups.stop()
        return placed, [(g.index, g.prompt.uid, g.block) for g in found], indices(second)

    placed, found, after = asyncio.run(scenario())
    assert placed == ([0], [1, 2, 3]) and after == [1, 2, 3, 4]
    assert found == [(2, "train/2", "block 1 of 1"), (1, "train/1", "block 1 of 1")]


def test_there_is_one_open_call_to_an_engine_with_groups_and_none_to_others():
    async def scenario():
        groups = OpenGroups(workers := Workers(2))
        await groups.submit([task(0)])
        await groups.submit([task(1, samples=2)])
        await groups.submit([task(2)])
        await asyncio.sleep(0)
        polls = [engine.polls for engine in workers.actors]
        workers.actors[1].finish(1)
        await groups.completed()
        await asyncio.sleep(0)
        polls += [engine.polls for engine in workers.actors]
        groups.stop()
        return polls

    assert asyncio.run(scenario()) == [1, 1, 1, 1]


def test_a_cancelled_group_does_not_come_back_even_if_its_prompt_is_submitted_again():
    async def scenario():
        groups = OpenGroups(workers := Workers(1))
        (engine,) = workers.actors
        await groups.submit([task(0), task(1)])
        await groups.cancel([0, 5])
        await groups.submit([task(0)])
        engine.report([0])  # it was on its way
        engine.report([1, 2])
        found = await groups.completed()
        numbers = [ticket.number for ticket in engine.tickets]
        return [group.index for group in found], engine.cancelled, numbers, groups.forgotten_tokens

    assert asyncio.run(scenario()) == ([1, 0], [0], [0, 1, 2], 1)


def test_a_finished_group_that_nobody_took_is_cancelled_too():
    async def scenario():
        groups = OpenGroups(workers := Workers(1))
        await groups.submit([task(0), task(1)])
        workers.actors[0].finish(0)
        await asyncio.sleep(0.01)
        await groups.cancel([0])
        workers.actors[0].finish(1)
        return [group.index for group in await groups.completed()], groups.forgotten_tokens

    assert asyncio.run(scenario()) == ([1], 1)


def test_an_engine_that_fails_ends_the_wait_for_groups():
    async def scenario():
        groups = OpenGroups(workers := Workers(2))
        await groups.submit([task(0), task(1)])
        workers.actors[1].reports.put_nowait(EngineError("engine1 ended"))
        try:
            await groups.completed()
        finally:
            groups.stop()

    with pytest.raises(EngineError, match="engine1 ended"):
        asyncio.run(scenario())
