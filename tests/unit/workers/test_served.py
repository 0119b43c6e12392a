"""Engines of models that are never trained: one that is lost is started again, and its requests go on."""

import asyncio

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError

from hybridrl.config.judge import FrozenConfig, JudgeConfig
from hybridrl.environments.base import EnvironmentFailedError
from hybridrl.errors import DataError, EngineError, EngineLostError
from hybridrl.rollout.base import Answer, Request
from hybridrl.types import Sampling
from hybridrl.workers import served
from hybridrl.workers.frozen import AskFrozen
from hybridrl.workers.served import AskServed, Served

REQUEST = Request(id="r", token_ids=(1, 2), sampling=Sampling(num_samples=1, max_response_tokens=4))
ANSWER = Answer(
    id="r",
    token_T=np.array([7], np.int32),
    logp_T=np.zeros(1, np.float32),
    version_T=np.zeros(1, np.int32),
    finish="stop",
)


class Kind:
    """Opens engines that fail as a script says: an error for each request, or None."""

    def __init__(self, *scripts):
        self.scripts, self.opened, self.ended = list(scripts), 0, 0

    def open(self):
        self.opened += 1
        return Engine(self, self.scripts.pop(0))


class Engine:
    def __init__(self, kind, script):
        self.kind, self.script = kind, list(script)

    async def request(self, request):
        error = self.script.pop(0)
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return ANSWER

    def shutdown(self):
        self.kind.ended += 1


def lost():
    return EngineLostError("the engine ended")


def test_a_lost_engine_is_started_again_at_the_next_request():
    kind = Kind([None, lost()], [None])

    async def run():
        own = Served(kind.open, 3)
        await own.request(REQUEST)
        with pytest.raises(EngineLostError):
            await own.request(REQUEST)
        assert await own.request(REQUEST) is ANSWER

    asyncio.run(run())
    assert kind.opened == 2 and kind.ended == 1


def test_requests_that_one_loss_ends_start_one_engine():
    kind = Kind([lost(), lost(), lost()], [None])

    async def run():
        own = Served(kind.open, 3)
        found = await asyncio.gather(*(own.request(REQUEST) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, EngineLostError) for error in found)
        await own.request(REQUEST)

    asyncio.run(run())
    assert kind.opened == 2 and kind.ended == 1


def test_an_engine_that_is_lost_too_often_stays_away():
    kind = Kind([lost()], [lost()])

    async def run():
        own = Served(kind.open, 1)
        for text in ("the engine ended", "the engine ended", "was lost 2 times"):
            with pytest.raises(EngineLostError, match=text):
                await own.request(REQUEST)

    asyncio.run(run())
    assert kind.opened == 2


def test_other_errors_leave_the_engine_as_it_is():
    kind = Kind([EngineError("too long"), None])

    async def run():
        own = Served(kind.open, 1)
        with pytest.raises(EngineError, match="too long"):
            await own.request(REQUEST)
        await own.request(REQUEST)

    asyncio.run(run())
    assert kind.opened == 1


class Handle:
    """A handle of a worker: each call fails as the script says, or is answered."""

    def __init__(self, *script):
        self.script, self.calls = list(script), 0
        self.request = self

    def remote(self, request):
        self.calls += 1

        async def answer():
            error = self.script.pop(0)
            if error is not None:
                raise error
            return ANSWER

        return answer()


def task_error(cause):
    return RayTaskError("request", "traceback", cause)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(served, "_PAUSE_S", 0.0)


@pytest.mark.parametrize("error", [lost(), task_error(lost()), RayActorError()])
def test_a_request_that_an_engine_loses_goes_to_the_next_one(at_once, error):
    engines = [Handle(error), Handle(None)]
    assert asyncio.run(AskServed(engines, JudgeConfig(path="m"))(REQUEST)) is ANSWER
    assert [engine.calls for engine in engines] == [1, 1]


@pytest.mark.parametrize("error", [EngineError("too long"), task_error(DataError("no"))])
def test_a_request_that_is_refused_is_not_sent_again(at_once, error):
    engine = Handle(error, None)
    with pytest.raises(type(error)):
        asyncio.run(AskServed([engine], JudgeConfig(path="m"))(REQUEST))
    assert engine.calls == 1


def test_a_request_that_all_lose_fails(at_once):
    engine = Handle(lost(), lost(), lost())
    with pytest.raises(EngineLostError):
        asyncio.run(AskServed([engine], JudgeConfig(path="m"))(REQUEST))
    assert engine.calls == 3


def test_a_frozen_player_without_an_engine_is_a_failure_of_the_world(at_once):
    ask = AskFrozen([Handle(EngineError("gone"))], FrozenConfig(path="m"), 4, (9,))
    with pytest.raises(EnvironmentFailedError, match="the frozen player failed: EngineError: gone"):
        asyncio.run(ask((1, 2), turn=5, most=2))
