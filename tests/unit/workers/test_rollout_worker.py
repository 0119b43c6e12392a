"""What an engine's worker does with open groups while weights are swapped."""

import asyncio

import numpy as np
import pytest

from hybridrl.errors import EngineError
from hybridrl.rollout.base import Answer
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.session import EngineSession
from hybridrl.types import GroupTask, Prompt, Sampling
from hybridrl.workers.engine_worker import RolloutWorker


class Engine:
    """Notes its calls; requests do not end."""

    def __init__(self):
        self.calls, self.session, self.ended = [], EngineSession(4), asyncio.Event()

    async def request(self, request):
        self.calls.append("request")
        await self.ended.wait()
        no_tokens = np.zeros(0, np.int32)
        return Answer(
            id=request.id,
            token_T=no_tokens,
            logp_T=no_tokens.astype(np.float32),
            version_T=no_tokens,
            finish="abort",
        )

    async def abort(self, ids):
        self.calls.append(f"abort {', '.join(ids)}")
        self.ended.set()

    async def pause(self, *, keep_cache=False):
        self.calls.append("pause and keep" if keep_cache else "pause")

    async def continue_(self):
        self.calls.append("continue_")

    async def release_cache(self):
        self.calls.append("release_cache")

    async def begin_swap(self, version):
        self.calls.append(f"begin {version}")

    async def commit_swap(self, version):
        if version == 13:
            raise EngineError("SGLang kept its prefix cache")
        self.calls.append(f"commit {version}")


def worker(swap):
    """A worker with an engine that runs, in this process."""
    made = object.__new__(RolloutWorker.__ray_metadata__.modified_class)
    made._engine, made._swap = Engine(), swap
    made._most_requests, made._player = 1, None
    made._runner = made._new_runner()
    return made


def ticket(number):
    sampling = Sampling(num_samples=1, max_response_tokens=1)
    return Ticket(number, GroupTask(index=number, prompt=Prompt(f"t/{number}", (1,), {}), sampling=sampling))


def calls(swap, version=1, *, sleeps=False):
    """What the engine is asked from two submitted groups on, of which one fits into the engine."""

    async def scenario():
        one = worker(swap)
        await one.submit([ticket(0), ticket(1)])
        await asyncio.sleep(0.001)
        if sleeps:
            await one.release_cache()
        await one.begin_swap(version)
        try:
            await one.commit_swap(version)
        except EngineError as error:
            one._engine.calls.append(str(error))
        one._runner._places.leave()  # the request inside ends
        await asyncio.sleep(0.001)
        return one._engine.calls

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("swap", "during"),
    [
        ("drain", ["begin 1", "commit 1"]),
        ("in_flight", ["pause", "begin 1", "commit 1", "continue_"]),
        ("in_flight_keep_cache", ["pause and keep", "begin 1", "commit 1", "continue_"]),
    ],
)
def test_a_swap_stops_requests_as_its_mode_says_and_lets_others_in_afterwards(swap, during):
    assert calls(swap) == ["request", *during, "request"]


def test_an_engine_that_did_not_commit_stays_paused_and_lets_nobody_in():
    found = calls("in_flight", 13)
    assert found == ["request", "pause", "begin 13", "SGLang kept its prefix cache"]


def test_a_sleeping_engine_keeps_its_requests_until_the_swap():
    found = calls("in_flight", sleeps=True)
    assert found == [
        "request",
        "pause",
        "release_cache",
        "pause",
        "begin 1",
        "commit 1",
        "continue_",
        "request",
    ]


def test_a_worker_begins_again_with_nothing_to_do_and_weights_without_a_version():
    async def scenario():
        one = worker("in_flight")
        await one.submit([ticket(0), ticket(1)])
        waiting = asyncio.create_task(one.finished())
        await asyncio.sleep(0.001)
        await one.begin_swap(5)
        await one.begin_again()
        nothing = await waiting
        calls, session = list(one._engine.calls), one._engine.session
        await one.submit([ticket(2)])  # the swap that was begun holds nobody back
        await asyncio.sleep(0.001)
        return calls, nothing, session.version, one._engine.calls[len(calls) :]

    calls, nothing, version, after = asyncio.run(scenario())
    assert calls == ["request", "pause", "begin 5", "abort 0/0/0"]
    assert nothing == ([], None) and version is None and after == ["request"]
