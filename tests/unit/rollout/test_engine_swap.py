"""The swap of an engine against a host that refuses: it serves only what was adopted."""

import asyncio
from concurrent.futures import Future

import pytest

from hybridrl.errors import EngineError
from hybridrl.rollout.lots import Outbox
from hybridrl.rollout.session import EngineSession
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.types import Prompt, Sampling


class EngineHost:
    """The caller of a host that keeps its prefix cache as often as it is told to."""

    def __init__(self, refusals):
        self.refusals = refusals

    def call(self, method, *args):
        future = Future()
        if method == "set_version" and self.refusals:
            self.refusals -= 1
            future.set_exception(EngineError("SGLang kept its prefix cache"))
        else:
            future.set_result(None)
        return future


def engine_of(host):
    """An engine without processes."""
    engine = object.__new__(SGLangEngine)
    engine.session, engine._caller, engine._paused = EngineSession(3, name="engine 0"), host, False
    engine._outbox = Outbox(host)
    return engine


def swap(engine, version):
    async def scenario():
        await engine.begin_swap(version)
        await engine.commit_swap(version)

    asyncio.run(scenario())


def test_an_engine_that_keeps_its_cache_of_the_old_weights_does_not_serve():
    engine = engine_of(EngineHost(refusals=1))
    with pytest.raises(EngineError, match="kept its prefix cache"):
        swap(engine, 4)
    prompts, sampling = [Prompt("train/0", (1,), {})], Sampling(num_samples=1, max_response_tokens=1)
    with pytest.raises(EngineError, match="engine 0 is committed and must not serve"):
        asyncio.run(engine.generate(prompts, sampling))


def test_an_engine_that_forgot_its_cache_serves_the_new_version():
    engine = engine_of(EngineHost(refusals=0))
    swap(engine, 4)
    assert engine.session.require_serving() == 4
