"""Engines and trainer ranks of a swap without SGLang, Megatron and Ray, in this process or in their own.

They satisfy what RaySync asks of workers, so that the product's protocol runs over them. Version v of the
weights is v + 1 times version 0.
"""

import asyncio
import contextlib
import inspect
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, cast

import torch
from trainer_ranks import _CONTEXT  # one server for all tests, which has imported torch once

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import WorkerError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import attach
from hybridrl.rollout.session import EngineSession


class Engine:
    """Parameters in shared memory, a session, and requests that tell what they would be answered with."""

    def __init__(self, layout, loaded, name="engine"):
        """
        Args:
            loaded: exported tensors of every rank, as the engine's own loader leaves version 0.
        """
        self.session = EngineSession(None, name=name)
        self.loaded = [{name: attach(shared) for name, shared in rank.items()} for rank in loaded]
        self.ranks = [{name: torch.zeros_like(t) for name, t in rank.items()} for rank in self.loaded]

    def export_parameters(self):
        return [{name: shm.export(tensor) for name, tensor in rank.items()} for rank in self.ranks]

    def begin_swap(self, version):
        self.session.quiesce(version)
        self.session.begin_write()

    def checksums(self):
        return [{name: checksum(tensor) for name, tensor in rank.items()} for rank in self.ranks]

    def commit_swap(self, version):
        self.session.commit(version)
        self.session.serve()

    def request(self):
        """(version, that the weights are of this version from end to end)"""
        version = self.session.require_serving()
        return version, self.holds(version)

    def holds(self, version):
        pairs = zip(self.ranks, self.loaded, strict=True)
        return all(
            torch.equal(rank[name], loaded[name] * (version + 1)) for rank, loaded in pairs for name in rank
        )

    def state(self):
        return self.session.state.value


class Writer:
    """A trainer rank."""

    fixed = frozenset()
    """Canonical parameters that no step changes."""

    def __init__(self, layout, rank, first):
        """
        Args:
            first: exported tensors of version 0.
        """
        self.layout, self.rank = layout, rank
        self.first = {name: attach(shared) for name, shared in first.items()}
        self.tensors = {name: torch.empty_like(tensor) for name, tensor in self.first.items()}

    def load(self, version):
        """Have the weights of a version, in place like an optimizer."""
        for name, tensor in self.first.items():
            torch.mul(tensor, version + 1, out=self.tensors[name])

    def connect(self, engines, lost, topology, waves):
        self.waves = [
            SwapWriter(
                self.layout, self.rank, [engines[engine] for engine in wave], lost=lost, fixed=self.fixed
            )
            for wave in waves
        ]
        return " ".join(writer.plan_hash for writer in self.waves)

    def plan_fields(self):
        return self.waves[0].plan_fields

    def write_weights(self, wave, whole):
        return self.waves[wave].write(self.tensors, whole=whole)


@dataclass
class World:
    """Layouts, and the weights of version 0 as every rank of both sides has them."""

    source: MegatronLayout
    engines: list
    exports: dict = field(default_factory=dict)
    owners: list = field(default_factory=list)

    def __post_init__(self):
        # Imported here: it makes hypothesis load, for which every process would wait.
        from model_values import hf_tensors
        from shard_oracle import megatron_shard, sglang_shard

        hf, spec = hf_tensors(self.source.spec), self.source.spec
        self.loaded = [
            [self._shared(sglang_shard(spec, hf, tp=layout.tp, rank=rank)) for rank in range(layout.tp)]
            for layout in self.engines
        ]
        tps, pps = self.source.tp, self.source.pp
        shards = {
            (tp, pp): self._shared(megatron_shard(spec, hf, tp=tps, pp=pps, rank_tp=tp, rank_pp=pp))
            for tp in range(tps)
            for pp in range(pps)
        }
        stage = self.source.tp * self.source.dp
        self.first = [shards[r % self.source.tp, r // stage] for r in range(self.source.world_size)]

    def _shared(self, tensors):
        owned = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        self.owners.append(owned)  # the memory lives as long as its exporter
        return {name: shm.export(tensor) for name, tensor in owned.items()}

    def engine(self, index):
        return Engine, (self.engines[index], self.loaded[index], f"engine {index}")

    def writer(self, rank):
        return Writer, (self.source, rank, self.first[rank])


class Called(NamedTuple):
    """A call to some ranks, and when it began and ended."""

    method: str
    ranks: tuple
    start: float
    end: float


class LocalGroup:
    """A WorkerGroup of objects in this process. A worker dies in a call by raising WorkerError."""

    def __init__(self, name, actors):
        self.name, self.actors = name, actors
        self.calls = []

    def __len__(self):
        return len(self.actors)

    async def all(self, method, *args, timeout_s=None):
        outcomes = await self.outcomes(method, *args, ranks=range(len(self)), timeout_s=timeout_s)
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome
        return list(outcomes.values())

    async def outcomes(self, method, *args, ranks, timeout_s=None):
        start = time.perf_counter()
        found = await asyncio.gather(*(self._ask(rank, method, args) for rank in ranks))
        self.calls.append(Called(method, tuple(ranks), start, time.perf_counter()))
        return dict(zip(ranks, found))

    def last(self, method):
        """The latest call of a method."""
        return next(call for call in reversed(self.calls) if call.method == method)

    async def _ask(self, rank, method, args):
        found = outcome(self.actors[rank], method, args)
        if not inspect.isawaitable(found):
            return found
        try:
            return await found
        except Exception as error:
            return error


class ProcessGroup(LocalGroup):
    """A WorkerGroup of processes. Each takes calls from two pipes: one can be asked beside the protocol."""

    def __init__(self, name, recipes):
        """
        Args:
            recipes: (class, arguments) of every rank.
        """
        super().__init__(name, [Process(*recipe) for recipe in recipes])
        self.recipes = recipes

    async def _ask(self, rank, method, args):
        return await asyncio.to_thread(self.ask, rank, method, *args)

    def ask(self, rank, method, *args, beside=False):
        try:
            return self.actors[rank].ask(method, args, beside)
        except (EOFError, OSError):
            return WorkerError(f"{self.name} rank {rank} died during {method!r}")

    def kill(self, rank):
        os.kill(self.actors[rank].process.pid, signal.SIGKILL)

    def renew(self, rank):
        """A new process in the place of one that was killed."""
        self.actors[rank].end()
        self.actors[rank] = Process(*self.recipes[rank])

    def end(self):
        for actor in self.actors:
            actor.end()


class Process:
    def __init__(self, kind, arguments):
        pipes = [_CONTEXT.Pipe() for _ in range(2)]
        self._ours = [ours for ours, _ in pipes]
        theirs = [theirs for _, theirs in pipes]
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, kind, arguments), daemon=True)
        self.process.start()
        for end in theirs:
            end.close()

    def ask(self, method, args, beside):
        pipe = self._ours[beside]
        pipe.send((method, args))
        return pipe.recv()

    def end(self):
        self.process.kill()
        self.process.join()
        for end in self._ours:
            end.close()


class Stage:
    """Two engines of tp 2, and trainer ranks of tp 2 and dp 2: 0 and 2 are replicas, and 1 and 3."""

    def __init__(self, spec, trainer=ProcessGroup, layout=SGLangLayout):
        """
        Args:
            trainer: class of the group of trainer ranks.
            layout: class of the layout of the engines.
        """
        self.layout = layout(spec, tp=2)
        self.world = World(MegatronLayout(spec, tp=2, dp=2), [self.layout] * 2)
        self.engines = ProcessGroup("engine", [self.world.engine(index) for index in range(2)])
        self.writers = trainer("trainer", [self.world.writer(rank) for rank in range(4)])
        self.warnings = []

    def push(self, *versions):
        """Swaps to these versions over new handles of both sides; the report of the last one."""
        # Imported here: Ray is for the driver, and the processes do without it.
        from hybridrl.cluster.group import WorkerGroup
        from hybridrl.trainer.checkpoints import Keep
        from hybridrl.workers.rollout import RayRollout
        from hybridrl.workers.sync import RaySync
        from hybridrl.workers.trainer import RayTrainer

        self.warnings.clear()
        cluster = ClusterConfig()
        writers, engines = (cast(WorkerGroup, group) for group in (self.writers, self.engines))
        trainer, rollout = RayTrainer(writers, cluster, Path(), Keep(1)), RayRollout(engines, cluster)
        sync = RaySync(trainer, rollout, self.layout, cluster, lambda about, text: self.warnings.append(text))

        async def swaps():
            await sync.connect()
            for version in versions:
                await self.writers.all("load", version, timeout_s=None)
                report = await sync.push(version)
            return report

        return asyncio.run(swaps())

    def beside(self, method, *args):
        """What both engines say to a call that is not the protocol's."""
        return [self.engines.ask(engine, method, *args, beside=True) for engine in range(2)]

    def end(self):
        self.engines.end()
        self.writers.end()


def outcome(worker, method, args):
    """What a call returns, or its error."""
    try:
        return getattr(worker, method)(*args)
    except Exception as error:  # a process edge: the caller gets it
        return error


def _serve(pipes, kind, arguments):
    torch.set_num_threads(1)
    worker = kind(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            for pipe in cast(list[Connection], wait(pipes)):
                pipe.send(outcome(worker, *pipe.recv()))
