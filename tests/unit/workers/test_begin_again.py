"""Engines of a run whose trainer starts again: they stay, and forget what they were asked."""

import asyncio

import pytest

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import EngineLostError, WorkerError
from hybridrl.rollout.groups import Ticket
from hybridrl.types import GroupTask, Prompt, Sampling
from hybridrl.workers.replacing import Replacements
from hybridrl.workers.rollout import RayRollout

LOST = EngineLostError("engine0 was ended by SIGKILL")
TASK = GroupTask(
    index=7, prompt=Prompt("t/7", (1,), {}), sampling=Sampling(num_samples=1, max_response_tokens=1)
)


class Never:
    """A remote method whose answer does not come."""

    def options(self, num_returns):
        return self

    def remote(self):
        return None, None


class Actor:
    finished = Never()


class Workers:
    """Two engines that note their calls; those of `gone` are dead. Replacements start when `held` is set."""

    def __init__(self, gone=()):
        self.calls, self.gone, self.held = [], set(gone), asyncio.Event()
        self.actors = [Actor(), Actor()]

    def __len__(self):
        return 2

    async def one(self, rank, method, *args, timeout_s=None):
        self.calls.append((method, rank, *args))
        if method == "start":
            await self.held.wait()

    async def renew(self, rank, *, timeout_s):
        self.calls.append(("renew", rank))

    async def result(self, rank, method, waiting):
        await asyncio.Event().wait()

    async def outcomes(self, method, *args, ranks, timeout_s=None):
        self.calls += [(method, rank) for rank in ranks]
        await asyncio.sleep(0)
        return {
            rank: WorkerError(f"engine rank {rank} died") if rank in self.gone else None for rank in ranks
        }


def rollout_of(workers, most=2):
    engines = Replacements(workers, most=most)

    async def give(engine):
        engines.serve(engine)

    engines.give_weights = give
    return RayRollout(workers, ClusterConfig(), engines=engines)


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_the_engines_were_asked_is_forgotten_and_tickets_have_new_numbers():
    async def scenario():
        before = rollout_of(workers := Workers())
        await before.submit([TASK])
        await settled()
        after = await before.begin_again()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await after.submit([TASK])
        submitted = [args for method, _, *args in workers.calls if method == "submit"]
        return workers.calls, left, after._groups._open, submitted

    calls, left, still_open, submitted = asyncio.run(scenario())
    assert [("begin_again", 0), ("begin_again", 1)] == [call for call in calls if call[0] == "begin_again"]
    assert not left and list(still_open) == [1], "nobody waits for the answer to the first ticket"
    assert submitted == [[[Ticket(0, TASK)]], [[Ticket(1, TASK)]]]


def test_an_engine_that_starts_goes_on_starting_and_waits_for_the_next_swap():
    async def scenario():
        before = rollout_of(workers := Workers())
        before.engines.lose(0, LOST)
        await settled()
        after = await before.begin_again()
        workers.held.set()
        await settled()
        return workers.calls, set(after.engines.serving), set(after.engines.fresh)

    calls, serving, fresh = asyncio.run(scenario())
    assert (serving, fresh) == ({1}, {0}), "the old trainer gives it nothing any more"
    assert ("begin_again", 0) not in calls and ("begin_again", 1) in calls


def test_who_was_given_weights_by_a_trainer_that_hangs_gets_them_with_the_next_swap():
    async def scenario():
        before = rollout_of(workers := Workers())
        workers.held.set()
        given = asyncio.Event()

        async def hang(engine):
            given.set()
            await asyncio.Event().wait()

        before.engines.give_weights = hang
        before.engines.lose(0, LOST)
        await given.wait()
        after = await before.begin_again()
        return asyncio.all_tasks() - {asyncio.current_task()}, set(after.engines.fresh)

    assert asyncio.run(scenario()) == (set(), {0})


def test_an_engine_that_is_gone_is_replaced_then_too():
    async def scenario():
        after = await rollout_of(workers := Workers(gone=[0])).begin_again()
        workers.held.set()
        await settled()
        return workers.calls, after.engines.serving, after.engines.fresh

    calls, serving, fresh = asyncio.run(scenario())
    assert ("renew", 0) in calls and (serving, fresh) == ({1}, {0})


def test_the_failure_of_a_dead_trainer_does_not_stick_to_the_engines():
    async def scenario():
        before = rollout_of(Workers())
        before.engines._end_run(WorkerError("trainer rank 0 died during 'write_weights'"))
        after = await before.begin_again()
        await after.engines.one_serves()
        waiting = asyncio.create_task(after.completed())
        await settled()
        return waiting.done(), waiting.cancel()

    assert asyncio.run(scenario()) == (False, True)


@pytest.mark.parametrize("gone", [[0, 1], []])
def test_without_an_engine_that_answers_everything_has_to_start_again(gone):
    async def scenario():
        before = rollout_of(Workers(gone=gone), most=1)
        if not gone:  # they failed before, as often as they may
            before.engines.serving.clear()
            before.engines._end_run(LOST)
        await before.begin_again()

    with pytest.raises(EngineLostError):
        asyncio.run(scenario())
