"""The WeightSync role: trainer ranks write into the engines' own parameters, then every rank votes.

The order of a swap: close the gate -> for each wave of engines, begin (engines DIRTY) -> write -> vote ->
commit -> open the gate. There is one wave, unless running requests are paused and go on afterwards: then the
engines of the other waves generate meanwhile. Writes put absolute values, so a write is repeated if a rank
votes no. Trainer ranks that died are then left out: the others plan again, and replicas write the missing
shares. With several nodes the swap fails instead. No engine of a wave commits before every trainer and engine
rank has voted yes. After an error the gate stays closed, and the engines of the wave stay paused: nothing is
sampled from weights that were not committed.

Engines on dedicated devices have receivers (receivers.py), which plan, write and vote as trainer ranks do.
Only those of the engines that a plan is for take part in it. After any fault all plan again, because their
process group may be broken; a receiver that ended is started again, and its engine is lost if that fails. A
trainer rank that died ends the swap: trainer ranks and receivers start again.

An engine that is lost (replacing.py) leaves the swap, and the others commit without it. A new engine takes
part in the next swap, or gets the present weights alone (`join`) while the trainer has them.

Waits: push() waits for running requests or their pause, then for every remaining trainer rank, then for every
engine; if all engines were lost, for a new one. join() waits for a swap or an optimizer step in progress.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import DeadlineError, EngineLostError, LayoutError, WorkerError
from hybridrl.layout.base import Layout
from hybridrl.reshard.agreement import difference, disagreement, expected
from hybridrl.reshard.swap import Engine, SwapWritten
from hybridrl.reshard.topology import Topology
from hybridrl.types import PolicyVersion, SwapReport
from hybridrl.workers.engine_worker import SwapMode
from hybridrl.workers.receivers import Receivers
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

_MAX_REPLAYS = 2
_MOST_WAVES = 4
"""Waves in which engines swap if their requests go on afterwards: only those of one wave are paused."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The votes of all ranks on one write."""

    outcomes: Mapping[int, Any]
    """Rank -> SwapWritten, or its error. Receivers follow the trainer ranks."""

    num_tensors: int
    """Number of tensors of all engines."""

    objection: BaseException | None
    """Why no engine may commit; None if all voted yes."""

    damaged: frozenset[int] = frozenset()
    """Engines whose checksums are not those of what was written."""

    @property
    def written(self) -> list[SwapWritten]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, SwapWritten)]


class RaySync:
    def __init__(
        self,
        trainer: RayTrainer,
        rollout: RayRollout,
        layout: Layout,
        cluster: ClusterConfig,
        warn: Callable[[str, str], None],
        topology: Topology | None = None,
        swap: SwapMode = "drain",
        receivers: Receivers | None = None,
    ) -> None:
        """
        Args:
            layout: layout of every engine.
            warn: called with (about, text) when a write is repeated.
            topology: placement of all ranks; None if all are on one node and every rank reaches every engine.
            swap: what engines do with open groups meanwhile. If these go on, engines swap in waves.
            receivers: those of the engines, which are the agents of the topology; None: there are none.
        """
        self._receivers, self._fixed = receivers, frozenset[str]()
        self._trainer, self._rollout, self._layout, self._cluster = trainer, rollout, layout, cluster
        self._warn, self._topology, self._swap = warn, topology, swap
        self._waves: list[tuple[int, ...]] = []
        """The engines of each wave; a wave whose engines were all lost is empty."""

        self._engines: dict[int, Engine] = {}
        self._planned: dict[int, Engine] = {}
        """The engines that the trainer ranks have planned for."""

        self._lost: frozenset[int] = frozenset()
        self._version: PolicyVersion | None = None
        """Version of the last swap."""

        self._unsure: set[int] = set()
        """Waves whose last swap did not commit: their engines may lack parameters that never change."""

        self._swapping = asyncio.Lock()

    async def connect(self) -> None:
        """Let engines export their parameters, and trainer ranks map them and agree on a plan.

        Call this once, when trainer and engines are up.

        Raises:
            SwapError: two ranks made different plans.
        """
        present = await self._exported(self._rollout.engines.present)
        if self._receivers is not None:
            self._fixed = (await self._trainer.workers.all("fixed_parameters"))[0]
        await self._plan_waves((await self._received(present))[0])

    async def push(self, version: PolicyVersion) -> SwapReport:
        """Bring all engines to a version.

        Raises:
            WorkerError, SwapError, ...: the objection that remained after the last replay, or a trainer rank
                that died was the only holder of a weight. The engines concerned do not serve.
            EngineError: an engine refused to commit, or was lost and is not replaced.
        """
        start, votes, replays, engines = time.perf_counter(), [], 0, self._rollout.engines
        async with self._rollout.quiet(), self._swapping:
            present = await self._exported(engines.present)
            present, restarted = await self._received(present)
            if restarted or self._planned != {engine: self._engines[engine] for engine in present}:
                await self._plan_waves(present)
            for wave in range(len(self._waves)):
                vote, repeated = await self._swap_wave(wave, version)
                votes.append(vote)
                replays += repeated
            while not engines.serving:
                vote, repeated = await self._swap_alone(await engines.one_is_fresh(), version)
                votes.append(vote)
                replays += repeated
            self._version = version
        engines.swapped(version + 1)
        return _report(version, votes, replays, time.perf_counter() - start)

    async def join(self, engine: int) -> None:
        """Give a fresh engine the weights that the others serve, unless the trainer has others: then the next
        swap does.

        Raises: as for push, except that the others go on.
        """
        async with self._trainer.unchanged, self._swapping:
            engines = self._rollout.engines
            if self._trainer.has(self._version) and engine in engines.fresh and self._version is not None:
                await self._swap_alone(engine, self._version)

    async def _swap_alone(self, engine: int, version: PolicyVersion) -> tuple[Vote, int]:
        """Swap one engine; the next swap of all plans again."""
        present = await self._exported([engine])
        self._waves = [tuple((await self._received(present))[0])]
        await self._agree(await self._plan())
        return await self._swap_wave(0, version)

    async def _swap_wave(self, wave: int, version: PolicyVersion) -> tuple[Vote, int]:
        """Swap the engines of a wave; returns the vote, and how often the weights were written again."""
        replays, whole = 0, wave in self._unsure
        self._unsure.add(wave)
        await self._keep(wave, await self._rollout.on(self._waves[wave], "begin_swap", version))
        vote = await self._write(wave, whole)
        while vote.objection and replays < _MAX_REPLAYS:
            replays += 1
            self._warn(f"swap to {version}", f"writing version {version} again: {vote.objection}")
            await self._plan_without(dead(vote.outcomes), vote)
            vote = await self._write(wave, whole=True)
        if vote.objection:
            await self._lose_damaged(wave, vote)
        for engine in await self._rollout.on(self._waves[wave], "commit_swap", version):
            self._rollout.engines.serve(engine)
        self._unsure.discard(wave)
        return vote, replays

    async def _write(self, wave: int, whole: bool) -> Vote:
        """Let every trainer rank write its share of a wave, then compare the engines' checksums.

        Args:
            whole: also what ranks wrote before and never changes.
        """
        engines = self._waves[wave]
        if not engines:
            return Vote({}, 0, None)
        outcomes = await self._on_ranks("write_weights", sum(map(bool, self._waves[:wave])), whole)
        if error := first_error(outcomes):
            return Vote(outcomes, 0, error)
        found = await self._rollout.on(engines, "checksums")
        held = {(e, r, n): c for e, tp in found.items() for r, d in enumerate(tp) for n, c in d.items()}
        sums = expected(written.checksums for written in outcomes.values())
        wanted = {(engines[e], r, name): c for (e, r, name), c in sums.items() if engines[e] in found}
        await self._keep(wave, found)
        damaged = {e for (e, r, name), value in wanted.items() if held.get((e, r, name)) != value}
        return Vote(outcomes, len(held), difference(wanted, held), frozenset(damaged))

    async def _lose_damaged(self, wave: int, vote: Vote) -> None:
        """Replace the engines whose weights are not what was written, if it is them and not the writers.

        Raises: the objection of the vote, if ranks could not write, or no engine has what was written and
            none ever had.
        """
        sound = set(self._rollout.engines.present) - vote.damaged
        if not vote.damaged or vote.objection is None or (self._version is None and not sound):
            raise vote.objection or AssertionError("all voted yes")
        for engine in sorted(vote.damaged):
            try:
                self._rollout.engines.lose(engine, EngineLostError(str(vote.objection)))
            except EngineLostError:
                raise vote.objection from None
        await self._keep(wave, [engine for engine in self._waves[wave] if engine not in vote.damaged])

    async def _keep(self, wave: int, engines: Collection[int]) -> None:
        """Let the trainer ranks plan again if engines of a wave were lost: their memory is not written to."""
        kept = tuple(engine for engine in self._waves[wave] if engine in engines)
        if kept != self._waves[wave]:
            self._waves[wave] = kept
            await self._agree(await self._plan())

    async def _exported(self, engines: Sequence[int]) -> list[int]:
        """Let engines export their parameters; returns those that are not lost by that."""
        known = self._engines.keys() & self._rollout.engines.serving
        found = await self._rollout.on([e for e in engines if e not in known], "export_parameters")
        self._engines |= {engine: (self._layout, export) for engine, export in found.items()}
        return [engine for engine in engines if engine in known or engine in found]

    async def _plan_waves(self, engines: Sequence[int]) -> None:
        count = min(len(engines), 1 if self._swap == "drain" else _MOST_WAVES)
        self._waves = [tuple(engines[first::count]) for first in range(count)]
        await self._agree(await self._plan())

    async def _plan_without(self, lost: frozenset[int], vote: Vote) -> None:
        """After a fault, plan for those ranks that are left.

        Raises: the objection of the vote, if the swap cannot go on without the lost ranks.
        """
        if self._receivers is not None:
            await self._plan_again(lost, vote)
            return
        if lost and self._topology is not None and self._topology.num_nodes > 1:
            assert vote.objection is not None, "a rank is lost"
            raise vote.objection  # the process group between nodes is broken without them
        try:
            await self._leave_out(lost)
        except LayoutError as error:  # the death is the cause: a run may start again after it
            what = f"{vote.objection}; {error.what}"
            raise WorkerError(what, where=error.where, fix=error.fix) from error

    async def _received(self, engines: Sequence[int]) -> tuple[list[int], bool]:
        """Start receivers that ended again; returns the engines that have theirs, and whether any had ended.

        Raises: why a receiver is not there, if its engine is not replaced.
        """
        if self._receivers is None:
            return list(engines), False
        ended = await self._receivers.start_ended(engines)
        failed = {engine: error for engine, error in ended.items() if error is not None}
        for engine, error in failed.items():
            self._rollout.engines.lose(engine, error)
        return [engine for engine in engines if engine not in failed], bool(ended)

    async def _plan_again(self, lost: frozenset[int], vote: Vote) -> None:
        """After a fault of a swap with receivers: start those that ended again, and make a new plan.

        Raises: the error of a trainer rank that died.
        """
        of_trainer = [rank for rank in sorted(lost) if rank < len(self._trainer.workers)]
        if of_trainer:
            raise vote.outcomes[of_trainer[0]]
        present, _ = await self._received(list(self._planned))
        self._waves = [tuple(engine for engine in wave if engine in present) for wave in self._waves]
        await self._agree(await self._plan())

    async def _leave_out(self, ranks: frozenset[int]) -> None:
        """Let the other trainer ranks plan again; ranks that die meanwhile are left out too.

        Raises:
            LayoutError: a rank that died was the only holder of a weight.
        """
        while ranks:
            self._lost |= ranks
            plans = await self._plan()
            ranks = dead(plans)
            if not ranks:
                await self._agree(plans)

    async def _plan(self) -> dict[int, Any]:
        timeout_s = self._cluster.start_timeout_s
        waves = [wave for wave in self._waves if wave]
        self._planned = {engine: self._engines[engine] for wave in waves for engine in wave}
        if not waves:
            return {}
        if self._receivers is None:
            placed = (self._planned, self._lost, self._topology, waves)
            return await self._on_ranks("connect", *placed, timeout_s=timeout_s)
        rendezvous = self._receivers.rendezvous(len(self._trainer.workers), list(self._planned))
        topology = self._topology and self._topology.with_agents_of(list(self._planned))
        placed = (self._planned, self._lost, topology, waves, rendezvous)
        return await self._on_ranks("connect", *placed, timeout_s=timeout_s, of_receivers=(self._fixed,))

    async def _agree(self, plans: Mapping[int, Any]) -> None:
        """Check that all ranks made the same plan.

        Raises:
            SwapError: two ranks made different plans. An error that a rank raised while planning goes first.
        """
        if error := first_error(plans):
            raise error
        if len(set(plans.values())) > 1:
            fields = await self._on_ranks("plan_fields")
            raise disagreement(plans, fields)

    async def _on_ranks(
        self, method: str, *args: Any, timeout_s: float | None = None, of_receivers: Sequence[Any] = ()
    ) -> dict[int, Any]:
        """Call a method on every trainer rank that is not lost, and on the receivers of the plan, if there
        are any; returns rank -> result or error.

        Args:
            of_receivers: further arguments that receivers get.

        Raises:
            DeadlineError: a rank did not answer in time.
        """
        ranks = [rank for rank in range(len(self._trainer.workers)) if rank not in self._lost]
        if not ranks:
            raise WorkerError("every trainer rank died")
        calls: list[Awaitable[Any]] = [
            self._trainer.workers.outcomes(method, *args, ranks=ranks, timeout_s=timeout_s)
        ]
        if self._receivers is not None:
            given = list(self._planned), method, *args, *of_receivers
            calls.append(self._receivers.outcomes(*given, timeout_s=timeout_s))
        found, *received = await asyncio.gather(*calls)
        first = len(self._trainer.workers)
        found |= {first + place: outcome for of_all in received for place, outcome in enumerate(of_all)}
        for outcome in found.values():
            if isinstance(outcome, DeadlineError):
                raise outcome
        return found


def first_error(outcomes: Mapping[int, Any]) -> BaseException | None:
    return next((outcome for outcome in outcomes.values() if isinstance(outcome, BaseException)), None)


def dead(outcomes: Mapping[int, Any]) -> frozenset[int]:
    return frozenset(rank for rank, outcome in outcomes.items() if isinstance(outcome, WorkerError))


def _report(version: PolicyVersion, votes: Sequence[Vote], replays: int, time_s: float) -> SwapReport:
    written = [share for vote in votes for share in vote.written]
    return SwapReport(
        version=version,
        time_s=time_s,
        num_tensors=sum(vote.num_tensors for vote in votes),
        written_bytes=sum(share.bytes for share in written),
        sent_bytes=sum(share.sent_bytes for share in written),
        staging_bytes=max((share.staging_bytes for share in written), default=0),
        checksums_equal=True,
        replays=replays,
    )
