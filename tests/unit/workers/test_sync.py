"""The protocol of a swap over engines and trainer ranks in this process, with faults at each of its steps."""

import asyncio

import pytest
import torch
from model_values import tiny
from swap_workers import Engine, LocalGroup, World, Writer

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import EngineError, SwapError, WorkerError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.topology import Topology
from hybridrl.trainer.checkpoints import Keep
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer


class FaultyWriter(Writer):
    """Writes rubbish and then raises, once for each of its errors."""

    def __init__(self, *arguments, errors=(), plan_errors=()):
        super().__init__(*arguments)
        self.errors, self.plan_errors = list(errors), list(plan_errors)

    def connect(self, engines, lost, topology, waves):
        if lost and self.plan_errors:
            raise self.plan_errors.pop(0)
        return super().connect(engines, lost, topology, waves)

    def write_weights(self, wave, whole):
        if self.errors:
            self.waves[wave].write({name: torch.full_like(t, 7.0) for name, t in self.tensors.items()})
            raise self.errors.pop(0)
        return super().write_weights(wave, whole)


class DamagedEngine(Engine):
    """One of its weights changes after each of the first writes."""

    damages = 1

    def checksums(self):
        if self.damages:
            self.damages -= 1
            self.ranks[0]["model.norm.weight"][1] += 1.0
        return super().checksums()


class EngineThatDiesAtCommit(Engine):
    def commit_swap(self, version):
        raise WorkerError("engine rank 0 died during 'commit_swap'")


def died(rank):
    return WorkerError(f"trainer rank {rank} died during 'write_weights'")


class SwapWorkers:
    """Two engines, and trainer ranks of tp 2 and dp 2: 0 and 2 are replicas, and 1 and 3."""

    def __init__(self, faults=None, first_engine=Engine, dp=2, plan_faults=None, topology=None, swap="drain"):
        faults, plan_faults = faults or {}, plan_faults or {}
        spec = tiny()
        world = World(MegatronLayout(spec, tp=2, dp=dp), [SGLangLayout(spec, tp=2)] * 2)
        recipes = [world.writer(rank)[1] for rank in range(world.source.world_size)]
        self.writers = LocalGroup(
            "trainer",
            [
                FaultyWriter(*recipe, errors=faults.get(r, ()), plan_errors=plan_faults.get(r, ()))
                for r, recipe in enumerate(recipes)
            ],
        )
        self.engines = LocalGroup("engine", [first_engine(*world.engine(0)[1]), Engine(*world.engine(1)[1])])
        self.warnings = []
        self.rollout = RayRollout(self.engines, ClusterConfig())
        self.sync = RaySync(
            RayTrainer(self.writers, ClusterConfig(), None, Keep(1)),
            self.rollout,
            world.engines[0],
            ClusterConfig(),
            lambda about, text: self.warnings.append(text),
            topology,
            swap,
        )

    def push(self, *versions):
        async def scenario():
            await self.sync.connect()
            for version in versions:
                for writer in self.writers.actors:
                    writer.load(version)
                report = await self.sync.push(version)
            return report

        return asyncio.run(scenario())

    def again(self, version):
        """A further swap with the plan of the last one."""
        for writer in self.writers.actors:
            writer.load(version)
        return asyncio.run(self.sync.push(version))

    def states(self):
        return [engine.state() for engine in self.engines.actors]

    def serve_whole(self, version):
        return [engine.request() for engine in self.engines.actors] == [(version, True)] * 2

    def gate_is_closed(self):
        async def request():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), self.rollout._requests(1):
                    pass
            return True

        return asyncio.run(request())


def test_a_swap_without_faults_is_written_once():
    workers = SwapWorkers()
    report = workers.push(0, 1)
    assert workers.serve_whole(1) and not workers.warnings
    assert (report.version, report.replays, report.num_tensors) == (
        1,
        0,
        2 * 2 * len(workers.engines.actors[0].ranks[0]),
    )


@pytest.fixture
def fixed_norm(monkeypatch):
    """Trainer ranks that say the final norm never changes; it does, so engines keep that of version 0."""
    monkeypatch.setattr(Writer, "fixed", frozenset({"final_norm"}))


@pytest.mark.parametrize("swap", ["drain", "in_flight"])
def test_what_never_changes_is_written_by_the_first_swap_only(fixed_norm, swap):
    workers = SwapWorkers(swap=swap)
    bytes_of_all = workers.push(0).written_bytes
    norms = [rank["model.norm.weight"] for e in workers.engines.actors for rank in e.ranks]
    first = [norm.clone() for norm in norms]
    assert bytes_of_all - workers.again(1).written_bytes == sum(norm.nbytes for norm in norms) > 0
    assert all(torch.equal(norm, old) for norm, old in zip(norms, first, strict=True))
    assert workers.states() == ["serving"] * 2 and not workers.warnings


def test_a_swap_that_failed_is_followed_by_a_whole_one(fixed_norm):
    workers = SwapWorkers(first_engine=DamagedEngine)
    workers.engines.actors[0].damages = 0
    whole = workers.push(0).written_bytes
    workers.engines.actors[0].damages = 1
    assert workers.again(1).replays == 1 and "differ after the swap" in workers.warnings[0]
    norm = workers.engines.actors[0].ranks[0]["model.norm.weight"]
    assert torch.equal(norm, workers.writers.actors[0].tensors["decoder.final_layernorm.weight"])
    workers.engines.actors[0].damages = 3
    with pytest.raises(SwapError, match="differ after the swap"):
        workers.again(2)
    assert workers.states() == ["dirty"] * 2
    assert workers.again(2).written_bytes == whole and workers.states() == ["serving"] * 2


def test_no_engine_commits_before_all_ranks_of_both_sides_said_yes():
    workers = SwapWorkers(faults={3: [died(3)]})
    workers.push(0)
    voted = [workers.writers.last("write_weights"), workers.engines.last("checksums")]
    assert [call.ranks for call in voted] == [(0, 1, 2), (0, 1)]
    committed = workers.engines.last("commit_swap")
    assert committed.ranks == (0, 1) and max(call.end for call in voted) <= committed.start


@pytest.mark.parametrize("error", [SwapError("no memory"), ValueError("a stranger's")])
def test_after_an_error_of_a_living_rank_all_write_again(error):
    workers = SwapWorkers(faults={1: [error]})
    assert workers.push(0).replays == 1
    assert workers.serve_whole(0) and workers.sync._lost == frozenset()
    assert workers.warnings == [f"writing version 0 again: {error}"]


def test_after_a_checksum_that_differs_all_write_again():
    workers = SwapWorkers(first_engine=DamagedEngine)
    assert workers.push(0).replays == 1
    assert workers.serve_whole(0) and "1 of 140 tensors differ" in workers.warnings[0]


def test_a_fault_that_stays_ends_the_swap_with_engines_dirty_and_the_gate_closed():
    workers = SwapWorkers(faults={1: [SwapError("no memory")] * 3})
    with pytest.raises(SwapError, match="no memory"):
        workers.push(0)
    assert workers.states() == ["dirty", "dirty"] and workers.gate_is_closed()
    assert len(workers.warnings) == 2
    with pytest.raises(EngineError, match="dirty"):
        workers.engines.actors[0].request()


def test_replicas_write_what_a_dead_rank_would_have():
    workers = SwapWorkers(faults={2: [died(2)]})
    assert workers.push(0).replays == 1
    assert workers.serve_whole(0) and "rank 2 died" in workers.warnings[0]


def test_ranks_that_die_one_after_the_other_are_all_left_out():
    workers = SwapWorkers(faults={2: [died(2)]}, plan_faults={1: [died(1)]})
    assert workers.push(0).replays == 1
    assert workers.serve_whole(0) and workers.sync._lost == {1, 2}


def test_without_a_replica_the_swap_ends_and_names_rank_and_weight():
    workers = SwapWorkers(faults={1: [died(1)]}, dp=1)
    wanted = r"(?s)rank 1 died.*no rank is left .*qkv, layers 0 to 3.*trainer ranks \[1\]"
    with pytest.raises(WorkerError, match=wanted):
        workers.push(0)
    assert workers.states() == ["dirty", "dirty"] and workers.gate_is_closed()


def test_on_one_node_of_gpus_replicas_write_what_a_dead_rank_would_have():
    workers = SwapWorkers(faults={2: [died(2)]}, topology=Topology.colocated(4, [2, 2], 8))
    assert workers.push(0).replays == 1
    assert workers.serve_whole(0) and "rank 2 died" in workers.warnings[0]


def test_over_several_nodes_a_dead_rank_ends_the_swap():
    workers = SwapWorkers(faults={3: [died(3)]}, topology=Topology.colocated(4, [2, 2], 2))
    with pytest.raises(WorkerError, match="trainer rank 3 died"):
        workers.push(0)
    assert workers.states() == ["dirty", "dirty"] and workers.gate_is_closed() and not workers.warnings[1:]


def test_when_every_trainer_rank_died_the_swap_ends():
    workers = SwapWorkers(faults={rank: [died(rank)] for rank in range(4)})
    with pytest.raises(WorkerError, match="every trainer rank died"):
        workers.push(0)
    assert workers.states() == ["dirty", "dirty"]


def test_an_engine_that_dies_at_commit_is_reported_and_the_others_are_whole():
    workers = SwapWorkers(first_engine=EngineThatDiesAtCommit)
    with pytest.raises(WorkerError, match="engine rank 0 died during 'commit_swap'"):
        workers.push(0)
    assert workers.engines.actors[1].request() == (0, True) and workers.gate_is_closed()


def test_ranks_that_plan_differently_are_refused_before_the_first_write():
    workers = SwapWorkers()
    workers.writers.actors[3].layout = MegatronLayout(tiny(), tp=2, dp=2, vocab_multiple=64)
    with pytest.raises(
        SwapError, match=r"ranks \[0, 1, 2\] and \[3\].*vocab_multiple is 128 on \[0, 1, 2\], 64 on \[3\]"
    ):
        workers.push(0)
    assert "write_weights" not in [call.method for call in workers.writers.calls]


def test_if_requests_go_on_engines_swap_one_after_the_other():
    workers = SwapWorkers(swap="in_flight")
    report = workers.push(0, 1)
    assert workers.serve_whole(1) and report.num_tensors == 2 * 2 * len(workers.engines.actors[0].ranks[0])
    order = [
        (call.method, call.ranks) for call in workers.engines.calls if call.method != "export_parameters"
    ]
    swap = [("begin_swap",), ("checksums",), ("commit_swap",)]
    assert order == [(method, (engine,)) for _ in range(2) for engine in range(2) for (method,) in swap]


def test_a_fault_in_a_wave_leaves_its_engines_dirty_and_those_before_whole():
    workers = SwapWorkers(swap="in_flight")
    workers.push(0)
    second = workers.engines.actors[1]
    second.checksums = lambda: [dict.fromkeys(rank, 7) for rank in second.ranks]
    with pytest.raises(SwapError, match="engine 1"):
        workers.push(1)
    assert workers.engines.actors[0].request() == (1, True)
    assert workers.states() == ["serving", "dirty"] and workers.gate_is_closed()


def test_a_rank_that_dies_between_waves_is_left_out_of_all():
    workers = SwapWorkers(swap="in_flight")
    workers.push(0)
    first = workers.writers.actors[2]
    write = first.write_weights
    first.write_weights = lambda wave, whole: (_ for _ in ()).throw(died(2)) if wave else write(wave, whole)
    assert workers.push(1).replays == 1
    assert workers.serve_whole(1) and workers.sync._lost == {2}
