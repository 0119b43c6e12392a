"""Faults around what a worker calls, in this process: those that end it are in tests/e2e."""

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybridrl.batch import RankBatch
from hybridrl.faults import parse
from hybridrl.rollout.session import EngineSession
from hybridrl.workers.planted import around_engine, around_observer, around_policy


class Engine:
    def __init__(self) -> None:
        self.session, self.calls = EngineSession(6), []

    async def request(self, request: str) -> str:
        self.calls.append(request)
        return "answer"

    async def pause(self) -> None:
        self.calls.append("paused")

    async def begin_swap(self, version: int) -> None:
        self.calls.append(f"begin {version}")

    async def checksums(self) -> list[dict[str, int]]:
        return [{"embed": 5, "norm": 7}]

    def shutdown(self) -> None:
        self.calls.append("shutdown")


class Policy:
    def __init__(self) -> None:
        self.seen, self.saved, self.steps = [], [], []

    def step(self, index: int) -> None:
        self.steps.append(index)

    def measure(self, batch: RankBatch) -> dict[str, float]:
        self.seen.append(batch.advantage_N)
        return {}

    def save(self, folder: Path, facts: object = None, export: object = None, more: Any = None) -> None:
        if more is not None:
            more(folder)
        self.saved.append(folder)


def batch(step: int) -> RankBatch:
    ones = np.ones(2, np.float32)
    return RankBatch(step, (), ones, ones, ones, reward_N=ones, advantage_N=ones)


def test_without_faults_nothing_is_around_a_worker() -> None:
    engine, policy, observe = Engine(), Policy(), SimpleNamespace()
    assert around_engine(engine, ()) is engine
    assert around_policy(policy, ()) is policy
    assert around_observer(observe, (), 0) is observe


def test_an_engine_that_hangs_does_so_after_the_answer_of_its_step() -> None:
    async def scenario() -> Engine:
        engine = Engine()
        faulty = around_engine(engine, [parse("hang:engine:0@step=7,phase=generate")])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(faulty.request("first"), 0.02)
        assert await faulty.request("second") == "answer"
        faulty.shutdown()
        return engine

    assert asyncio.run(scenario()).calls == ["first", "second", "shutdown"]


def test_a_checksum_is_bad_in_the_swap_that_the_fault_names() -> None:
    async def scenario() -> list[dict[str, int]]:
        faulty, found = around_engine(Engine(), [parse("bad_checksum:engine:0@step=7,phase=swap")]), []
        for version in (6, 7):
            await faulty.begin_swap(version)
            found += await faulty.checksums()
        return [*found, *await faulty.checksums()]

    good, bad, again = asyncio.run(scenario())
    assert good == again == {"embed": 5, "norm": 7} != bad and bad.keys() == good.keys()


def test_numbers_go_and_the_disk_is_full_in_the_step_that_the_fault_names() -> None:
    policy = Policy()
    faults = [parse("nan:trainer:0@step=7,phase=update"), parse("disk_full:trainer:0@step=7,phase=save")]
    faulty = around_policy(policy, faults)
    for step in (6, 7):
        faulty.measure(batch(step))
        if step == 7:
            with pytest.raises(OSError, match="No space left"):
                faulty.save(Path("a"), {}, None, None)
        else:
            faulty.save(Path("b"), {}, None, None)
    assert [bool(np.isnan(seen).all()) for seen in policy.seen] == [False, True]
    assert policy.saved == [Path("b")]


def test_an_engine_is_paused_and_goes_on_with_nothing_else() -> None:
    async def scenario() -> list[str]:
        engine = Engine()
        faulty = around_engine(engine, [parse("pause:engine:0@step=7,phase=generate")])
        await faulty.request("first")
        await faulty.request("second")
        return engine.calls

    assert asyncio.run(scenario()) == ["first", "paused", "second"]


def test_a_rank_that_skips_a_step_has_not_taken_it() -> None:
    policy = Policy()
    faulty = around_policy(policy, [parse("skip:trainer:0@step=7,phase=update")])
    faulty.measure(batch(7))
    assert faulty.step(0).version == 7 and policy.steps == []
    faulty.step(1)
    assert policy.steps == [1]


def test_a_policy_with_faults_is_saved_as_any_other(tmp_path: Path) -> None:
    policy = Policy()
    around_policy(policy, [parse("nan:trainer:0@step=7,phase=update")]).save(tmp_path)
    assert policy.saved == [tmp_path]


def test_the_driver_is_slow_in_the_span_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, spans = [], []
    monkeypatch.setattr("hybridrl.workers.planted.time.sleep", lambda s: slept.append((s, *spans)))

    @contextlib.contextmanager
    def span(name):
        spans.append(name)
        yield
        spans.remove(name)

    observe = SimpleNamespace(span=span)
    faulty = around_observer(observe, [parse("slow:driver@step=7,phase=update,seconds=9")], 5)
    for _ in range(3):
        with faulty.span("step"), faulty.span("update_actor"):
            pass
        slept.append("step")
    assert slept == ["step", (9.0, "step", "update_actor"), "step", "step"]
