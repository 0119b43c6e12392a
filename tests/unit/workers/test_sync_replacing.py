"""Engines that are lost in a swap, and new ones that get their weights: the protocol in this process."""

import asyncio

import pytest
import torch
from coming_node import ComingNode
from model_values import tiny
from swap_workers import LocalGroup, World, Writer

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import EngineLostError, SwapError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.trainer.checkpoints import Keep
from hybridrl.types import StepReport
from hybridrl.workers.replacing import Replacements
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer


class Engines(LocalGroup):
    """Engines that can be started again; a call that a test names is the last one of an engine."""

    def __init__(self, recipes):
        super().__init__("engine", [kind(*arguments) for kind, arguments in recipes])
        self._recipes, self.last_calls, self.may_start = recipes, {}, asyncio.Event()
        self.may_start.set()

    async def renew(self, rank, *, timeout_s):
        self.last_calls.pop(rank, None)
        kind, arguments = self._recipes[rank]
        self.actors[rank] = kind(*arguments)

    async def one(self, rank, method, *args, timeout_s=None):
        if method == "start":
            await self.may_start.wait()

    async def _ask(self, rank, method, args):
        if self.last_calls.get(rank) == method:
            return EngineLostError(f"engine{rank} was ended by SIGKILL")
        return await super()._ask(rank, method, args)


class Scene:
    """Two engines over trainer ranks of tp 2; what the user is told."""

    def __init__(self, swap="drain", count=2, most=3, nodes=None):
        spec = tiny()
        self.world = world = World(MegatronLayout(spec, tp=2), [SGLangLayout(spec, tp=2)] * count)
        self.writers = LocalGroup(
            "trainer", [kind(*recipe) for kind, recipe in map(world.writer, range(world.source.world_size))]
        )
        self.engines = Engines([world.engine(index) for index in range(count)])
        self.said, self.warnings = [], []
        self.care = Replacements(self.engines, most=most, say=self.said.append, nodes=nodes)
        self.rollout = RayRollout(self.engines, ClusterConfig(), engines=self.care)
        self.trainer = RayTrainer(self.writers, ClusterConfig(), None, Keep(1))
        warn = lambda about, text: self.warnings.append(text)
        self.sync = RaySync(self.trainer, self.rollout, world.engines[0], ClusterConfig(), warn, None, swap)

    async def begin(self):
        """The first swap."""
        await self.sync.connect()
        self.care.give_weights = self.sync.join
        await self.push(0)

    async def push(self, version):
        self.update(version)
        return await self.sync.push(version)

    def update(self, version):
        self.trainer.version = version
        for writer in self.writers.actors:
            writer.load(version)

    def served(self):
        """(version, that the weights are of it from end to end) of every engine that serves."""
        return {engine: self.engines.actors[engine].request() for engine in sorted(self.care.serving)}


async def settled():
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.mark.parametrize("swap", ["drain", "in_flight"])
@pytest.mark.parametrize("call", ["begin_swap", "checksums", "commit_swap"])
def test_an_engine_lost_in_a_swap_leaves_it_and_its_successor_gets_the_weights(swap, call):
    async def scenario():
        scene = Scene(swap)
        await scene.begin()
        scene.engines.may_start.clear()
        scene.engines.last_calls[1] = call
        await scene.push(1)
        without = scene.served()
        scene.engines.may_start.set()
        await settled()
        alone = scene.served()
        await scene.push(2)
        return without, alone, scene.served(), scene

    without, alone, after, scene = asyncio.run(scenario())
    assert without == {0: (1, True)}
    assert alone == {0: (1, True), 1: (1, True)}
    assert after == {0: (2, True), 1: (2, True)}
    assert len(scene.said) == 2 and "engine 1 is lost" in scene.said[0] and not scene.warnings


def test_a_new_engine_gets_what_never_changes_too(monkeypatch):
    monkeypatch.setattr(Writer, "fixed", frozenset({"final_norm"}))

    async def scenario():
        scene = Scene()
        await scene.begin()
        before = [engine.ranks[0]["model.norm.weight"].clone() for engine in scene.engines.actors]
        scene.care.lose(1, EngineLostError("gone"))
        await settled()
        return before, [engine.ranks[0]["model.norm.weight"] for engine in scene.engines.actors], scene

    before, after, scene = asyncio.run(scenario())
    assert scene.served() == {0: (0, True), 1: (0, True)}
    assert all(torch.equal(one, other) and one.any() for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("call", ["begin_swap", "checksums", "commit_swap"])
def test_a_swap_that_loses_its_only_engine_waits_for_the_new_one(call):
    async def scenario():
        scene = Scene(count=1)
        await scene.begin()
        scene.engines.may_start.clear()
        scene.engines.last_calls[0] = call
        pushing = asyncio.create_task(scene.push(1))
        await settled()
        assert not pushing.done() and not scene.care.serving
        scene.engines.may_start.set()
        report = await pushing
        return report, scene.served(), len(scene.said)

    report, served, said = asyncio.run(scenario())
    assert report.version == 1 and report.num_tensors and served == {0: (1, True)} and said == 2


def test_a_new_engine_gets_no_weights_between_two_optimizer_steps():
    async def scenario():
        scene = Scene()
        await scene.begin()
        scene.trainer._loaded = (1, 1)  # a batch of two minibatches
        scene.writers.step = [StepReport(version, 0.0, 0.0, 0.0, {}) for version in (1, 1)]
        for writer in scene.writers.actors:
            writer.step = lambda index: StepReport(1, 0.0, 0.0, 0.0, {})
        await scene.trainer.step(0)
        scene.care.lose(1, EngineLostError("gone"))
        await settled()
        between = scene.served(), scene.care.fresh.copy()
        await scene.trainer.step(1)
        await settled()
        before_push = scene.served(), scene.care.fresh.copy()
        await scene.push(1)
        return between, before_push, scene.served()

    between, before_push, after = asyncio.run(scenario())
    assert between == before_push == ({0: (0, True)}, {1})
    assert after == {0: (1, True), 1: (1, True)}


def test_an_engine_whose_weights_stay_wrong_is_replaced_and_the_others_commit():
    async def scenario():
        scene = Scene()
        await scene.begin()
        second = scene.engines.actors[1]
        second.checksums = lambda: [dict.fromkeys(rank, 7) for rank in second.ranks]
        await scene.push(1)
        first = scene.served()
        await settled()
        return first, scene.served(), scene

    first, after, scene = asyncio.run(scenario())
    assert first == {0: (1, True)} and after == {0: (1, True), 1: (1, True)}
    assert len(scene.warnings) == 2 and "engine 1" in scene.said[0] and "differ" in scene.said[0]


def test_weights_that_never_were_right_end_the_run():
    async def scenario():
        scene = Scene()
        await scene.sync.connect()
        scene.care.give_weights = scene.sync.join
        for engine in scene.engines.actors:
            engine.checksums = lambda: [dict.fromkeys(rank, 7) for rank in scene.engines.actors[0].ranks]
        await scene.push(0)

    with pytest.raises(SwapError, match="differ"):
        asyncio.run(scenario())


def test_without_restarts_a_lost_engine_ends_the_swap():
    async def scenario():
        scene = Scene(most=0)
        await scene.begin()
        scene.engines.last_calls[1] = "checksums"
        await scene.push(1)

    with pytest.raises(EngineLostError, match="engine1 was ended by SIGKILL"):
        asyncio.run(scenario())


@pytest.mark.parametrize("swap", ["drain", "in_flight"])
def test_an_engine_that_joins_gets_the_weights_of_the_others_and_then_swaps_with_them(swap):
    async def scenario():
        node = ComingNode()
        scene = Scene(swap, count=3, nodes={2: node})
        await scene.begin()
        without = scene.served()
        await scene.push(1)
        node.comes()
        await settled()
        joined = scene.served()
        report = await scene.push(2)
        return without, joined, scene.served(), report, scene

    without, joined, after, report, scene = asyncio.run(scenario())
    assert without == {0: (0, True), 1: (0, True)}
    assert joined == dict.fromkeys(range(3), (1, True))
    assert after == dict.fromkeys(range(3), (2, True))
    assert report.replays == 0 and report.checksums_equal and not scene.warnings
    assert scene.said[-1] == "engine 2 joins: 3 engines serve"


def test_an_engine_that_comes_while_the_trainer_has_other_weights_joins_with_the_next_swap():
    async def scenario():
        node = ComingNode()
        scene = Scene(nodes={1: node})
        await scene.begin()
        scene.update(1)
        node.comes()
        await settled()
        before = scene.served(), scene.care.fresh.copy()
        await scene.sync.push(1)
        return before, scene.served()

    before, after = asyncio.run(scenario())
    assert before == ({0: (0, True)}, {1}) and after == {0: (1, True), 1: (1, True)}
