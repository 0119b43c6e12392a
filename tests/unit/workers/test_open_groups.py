"""Groups on two engines that finish them when they are told to."""

import asyncio

import pytest
from coming_node import ComingNode

from hybridrl.errors import EngineError, EngineLostError, WorkerError
from hybridrl.rollout.groups import FinishedGroup
from hybridrl.types import GroupTask, Prompt, Sampling, Trajectory
from hybridrl.workers.open_groups import OpenGroups
from hybridrl.workers.replacing import Replacements


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
        self.gone = set()

    def __len__(self):
        return len(self.actors)

    async def renew(self, rank, *, timeout_s):
        self.actors[rank] = Engine(rank)

    async def one(self, rank, method, argument=None, timeout_s=None):
        await asyncio.sleep(0)
        if method in ("end", "start"):
            return
        if rank in self.gone:
            raise WorkerError(f"engine rank {rank} died during {method!r}")
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


LOST = EngineLostError("engine1 was ended by SIGKILL")


def replaced(workers):
    """Groups over engines that are replaced; a new one serves when the test says so."""
    engines = Replacements(workers, most=9)

    async def later(engine):
        """Its weights come with the next swap."""

    engines.give_weights = later
    return OpenGroups(workers, engines), engines


async def settle():
    await asyncio.sleep(0.01)


def test_groups_of_a_lost_engine_are_asked_again_and_come_back_once():
    async def scenario():
        groups, engines = replaced(workers := Workers(2))
        first, second = workers.actors
        await groups.submit([task(index, samples=2) for index in range(4)])
        second.finish(1)
        found = [group.index for group in await groups.completed()]
        second.reports.put_nowait(LOST)
        await settle()
        asked = [(ticket.task.index, ticket.task.sampling) for ticket in first.tickets]
        second.report([3])  # the old engine's answer comes late
        await settle()
        first.finish(0, 2, 3)
        found += [group.index for group in await groups.completed()]
        groups.stop()
        return asked, found, groups.asked_again, engines.serving

    asked, found, asked_again, serving = asyncio.run(scenario())
    assert asked == [(index, task(index, samples=2).sampling) for index in (0, 2, 3)]
    assert sorted(found) == [0, 1, 2, 3] and asked_again == 1 and serving == {0}


def test_groups_wait_for_a_new_engine_if_none_is_left():
    async def scenario():
        groups, engines = replaced(workers := Workers(1))
        await groups.submit([task(0), task(1)])
        old = workers.actors[0]
        old.reports.put_nowait(LOST)
        await settle()
        await groups.submit([task(2), task(3)])
        await groups.cancel([1, 3])
        new = workers.actors[0]
        before = new is not old and not new.tickets
        engines.serve(0)
        await settle()
        new.finish(0, 2)
        found = [group.index for group in await groups.completed()]
        groups.stop()
        return before, indices(new), found, groups.asked_again

    assert asyncio.run(scenario()) == (True, [0, 2], [0, 2], 2)


def test_a_loss_that_a_call_finds_is_the_same_loss():
    """The engine is gone when groups are submitted to it, and when others are cancelled."""

    async def scenario():
        groups, engines = replaced(workers := Workers(2))
        await groups.submit([task(0), task(1)])
        workers.gone.add(1)
        await groups.submit([task(2), task(3)])
        await groups.cancel([1])
        await settle()
        asked = indices(workers.actors[0])
        groups.stop()
        return asked, engines.serving, groups.asked_again

    asked, serving, asked_again = asyncio.run(scenario())
    assert sorted(asked) == [0, 1, 2, 3] and serving == {0} and asked_again == 2


def test_tokens_that_a_lost_engine_did_not_report_are_counted():
    async def scenario():
        groups, _ = replaced(workers := Workers(2))
        await groups.submit([task(index) for index in range(4)])
        for index in (1, 3):
            workers.actors[1].finish(index)
            await groups.completed()
            if index == 1:
                groups.reported(1)
        await groups.submit([task(4), task(5)])
        workers.actors[1].reports.put_nowait(LOST)
        await settle()
        groups.stop()
        return groups.lost_tokens

    assert asyncio.run(scenario()) == 1


def test_an_engine_that_joins_gets_its_share_and_every_group_comes_back_once():
    async def scenario():
        node = ComingNode()
        workers = Workers(2)
        care = Replacements(workers, most=1, nodes={1: node})

        async def give(engine):
            care.serve(engine)

        care.give_weights = give
        groups = OpenGroups(workers, care)
        first, second = workers.actors
        care.swapped(0)
        await groups.submit([task(0, samples=4), task(1, samples=4)])
        before = indices(first), indices(second)
        node.comes()
        while 1 not in care.serving:
            await asyncio.sleep(0)
        second = workers.actors[1]
        await groups.submit([task(2, samples=4), task(3, samples=4), task(4, samples=4)])
        first.finish(0, 1)
        second.finish(2, 3)
        found = [group.index for group in await groups.completed()]
        while len(found) < 4:
            found += [group.index for group in await groups.completed()]
        placed = indices(first), indices(second)
        groups.stop()
        return before, placed, found, groups.asked_again

    before, placed, found, asked_again = asyncio.run(scenario())
    assert before == ([0, 1], [])
    assert placed == ([0, 1, 4], [2, 3]), "the new engine gets groups until it has as many"
    assert sorted(found) == [0, 1, 2, 3] and asked_again == 0
