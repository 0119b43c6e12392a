"""Engines on dedicated devices: receivers write for the trainer, over gloo, in processes of their own."""

import asyncio

import pytest
from coming_node import ComingNode
from model_values import tiny
from receiver_workers import Renewable, SwapReceiver, SwapTrainer, flag, new_store
from swap_workers import LocalGroup, ProcessGroup, World, Writer

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import WorkerError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec as models
from hybridrl.reshard.topology import Topology
from hybridrl.trainer.checkpoints import Keep
from hybridrl.workers.receivers import Receivers
from hybridrl.workers.replacing import Replacements
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.swap_rank import ReceiverSetup
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer

SPEC = tiny()
TOPOLOGY = Topology.separate(2, [2, 2], node_size=4)
"""Trainer ranks of tp 2 on one node; two engines of tp 2 on the other, with a receiver for each rank."""


class Processes:
    def __init__(self):
        self.world = world = World(MegatronLayout(SPEC, tp=2), [SGLangLayout(SPEC, tp=2)] * 2)
        store, self.dies_at_write = new_store(), flag()
        self.trainers = ProcessGroup(
            "trainer", [(SwapTrainer, (*world.writer(rank)[1], store)) for rank in range(2)]
        )
        setups = [
            ReceiverSetup(device=device, source=world.source, on_gpu=False, timeout_s=30.0)
            for device in TOPOLOGY.agents
        ]
        self.beside = Renewable("receiver", [(SwapReceiver, (one, self.dies_at_write)) for one in setups])

    def end(self):
        self.trainers.end()
        self.beside.end()


@pytest.fixture(scope="module")
def processes():
    found = Processes()
    yield found
    found.end()


class Scene:
    """A run that begins: new engines and a new protocol over the processes."""

    def __init__(self, world, trainers, beside, swap="drain", group=LocalGroup, nodes=None):
        """
        Args:
            group: class of the group of engines.
            nodes: as in Replacements.
        """
        self.world, self.beside, self.trainers, self.warnings = world, beside, trainers, []
        made = [kind(*arguments) for kind, arguments in map(world.engine, range(2))]
        self.engines = group("engine", made)
        self.care = Replacements(self.engines, most=1, nodes=nodes)
        self.trainer = RayTrainer(trainers, ClusterConfig(), None, Keep(1))
        self.sync = RaySync(
            self.trainer,
            RayRollout(self.engines, ClusterConfig(), engines=self.care),
            world.engines[0],
            ClusterConfig(),
            lambda about, text: self.warnings.append(text),
            TOPOLOGY,
            swap,
            Receivers(beside, 2, new_store(), 30.0),
        )

    async def begin(self):
        """The first swap."""
        self.care.give_weights = self.sync.join
        await self.sync.connect()
        return await self.push(0)

    async def push(self, version):
        await self.trainers.all("load", version)
        self.trainer.version = version
        return await self.sync.push(version)

    def serve(self, version):
        return [engine.request() for engine in self.engines.actors] == [(version, True)] * 2


@pytest.fixture
def scene(processes, request):
    return Scene(processes.world, processes.trainers, processes.beside, getattr(request, "param", "drain"))


@pytest.mark.parametrize("scene", ["drain", "in_flight"], indirect=True)
def test_each_byte_enters_a_node_once_in_a_wave_and_engines_hold_it(scene):
    async def scenario():
        return await scene.begin(), await scene.push(1)

    waves = 1 if scene.sync._swap == "drain" else 2
    for report in asyncio.run(scenario()):
        assert report.replays == 0 and report.checksums_equal
        # fp32 everywhere; boxes of a message begin at multiples of 16 bytes.
        assert report.sent_bytes == pytest.approx(waves * models.count(SPEC) * 4, rel=0.05)
        assert report.written_bytes >= 2 * models.count(SPEC) * 4
    assert scene.serve(1)


def test_a_receiver_that_ended_between_swaps_is_started_again(scene):
    async def scenario():
        await scene.begin()
        scene.beside.kill(1)
        return await scene.push(1)

    assert asyncio.run(scenario()).replays == 0
    assert scene.serve(1) and not scene.warnings


class Startable(LocalGroup):
    """Engines that can be started while a run goes on."""

    async def renew(self, rank, *, timeout_s):
        pass

    async def one(self, rank, method, *args, timeout_s=None):
        pass


@pytest.mark.parametrize("swap", ["drain", "in_flight"])
def test_receivers_of_an_engine_that_joins_start_when_it_does(processes, swap):
    async def scenario():
        node = ComingNode()
        sides = processes.world, processes.trainers, processes.beside
        scene = Scene(*sides, swap, Startable, {1: node})
        for rank in (2, 3):  # they have not started
            scene.beside.kill(rank)
        alone = await scene.begin()
        node.comes()
        while 1 not in scene.care.serving:
            await asyncio.sleep(0.01)
        joined = scene.serve(0)
        return alone, joined, await scene.push(1), scene

    alone, joined, both, scene = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert alone.sent_bytes == pytest.approx(models.count(SPEC) * 4, rel=0.05)
    assert alone.num_tensors * 2 == both.num_tensors and both.replays == 0
    assert joined and scene.serve(1) and not scene.warnings


def test_a_receiver_that_dies_in_a_write_is_started_again_and_all_write_again(scene, processes):
    async def scenario():
        await scene.begin()
        processes.dies_at_write.touch()
        return await scene.push(1)

    assert asyncio.run(scenario()).replays == 1
    assert scene.serve(1) and len(scene.warnings) == 1


def test_an_engine_joins_alone_with_its_receivers(scene):
    """The engine was started again, and exports new memory."""

    async def scenario():
        await scene.begin()
        kind, arguments = scene.world.engine(1)
        scene.engines.actors[1] = kind(*arguments)
        scene.care.serving.discard(1)
        scene.care.fresh.add(1)
        scene.care._lost_at[1] = 0.0
        await scene.sync.join(1)

    asyncio.run(scenario())
    assert scene.serve(0)
    assert scene.beside.last("write_weights").ranks == (2, 3)


def test_an_engine_whose_receiver_cannot_start_is_lost_and_the_others_go_on(scene):
    async def scenario():
        await scene.begin()
        scene.beside.kill(3)
        scene.beside.fails_to_start = True
        await scene.push(1)
        scene.care.stop()

    asyncio.run(scenario())
    assert scene.care.serving == {0} and scene.engines.actors[0].request() == (1, True)
    scene.beside.fails_to_start = False
    asyncio.run(scene.beside.renew(3, timeout_s=30.0))


class DyingWriter(Writer):
    """A trainer rank whose write is its end."""

    def connect(self, engines, lost, topology, waves, rendezvous):
        return "the same plan"

    def fixed_parameters(self):
        return frozenset()

    def write_weights(self, wave, whole):
        raise WorkerError(f"trainer rank {self.rank} died during 'write_weights'")


class WaitingReceiver:
    def pid(self):
        return 1

    def connect(self, *given):
        return "the same plan"

    def write_weights(self, wave, whole):
        return WorkerError("not asked in this test")


def test_a_trainer_rank_that_dies_ends_the_swap(processes):
    writers = LocalGroup("trainer", [DyingWriter(*processes.world.writer(rank)[1]) for rank in range(2)])
    scene = Scene(processes.world, writers, LocalGroup("receiver", [WaitingReceiver() for _ in range(4)]))
    with pytest.raises(WorkerError, match="trainer rank 0 died"):
        asyncio.run(scene.begin())
    assert [engine.state() for engine in scene.engines.actors] == ["dirty", "dirty"]
