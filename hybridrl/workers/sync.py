"""The WeightSync role: trainer ranks write into the engines' own parameters, then every rank votes.

The order of a swap: close the gate -> for each wave of engines, begin (engines DIRTY) -> write -> vote ->
commit -> open the gate. There is one wave, unless running requests are paused and go on afterwards: then the
engines of the other waves generate meanwhile. Writes put absolute values, so a write is repeated if a rank
votes no. Trainer ranks that died are then left out: the others plan again, and replicas write the missing
shares. With several nodes the swap fails instead. No engine of a wave commits before every trainer and engine
rank has voted yes. After an error the gate stays closed, and the engines of the wave stay paused: nothing is
sampled from weights that were not committed.

Waits: push() waits for running requests or their pause, then for every remaining trainer rank, then for every
engine.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import WorkerError
from hybridrl.layout.base import Layout
from hybridrl.reshard.agreement import difference, disagreement, expected
from hybridrl.reshard.swap import Engine, SwapWritten
from hybridrl.reshard.topology import Topology
from hybridrl.types import PolicyVersion, SwapReport
from hybridrl.workers.rollout import RayRollout, SwapMode
from hybridrl.workers.trainer import RayTrainer

_MAX_REPLAYS = 2
_MOST_WAVES = 4
"""Waves in which engines swap if their requests go on afterwards: only those of one wave are paused."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The votes of all ranks on one write."""

    outcomes: Mapping[int, Any]
    """Trainer rank -> SwapWritten, or its error."""

    num_tensors: int
    """Number of tensors of all engines."""

    objection: BaseException | None
    """Why no engine may commit; None if all voted yes."""

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
    ) -> None:
        """
        Args:
            layout: layout of every engine.
            warn: called with (about, text) when a write is repeated.
            topology: placement of all ranks; None if all are on one node and every rank reaches every engine.
            swap: what engines do with open groups meanwhile. If these go on, engines swap in waves.
        """
        self._trainer, self._rollout, self._layout, self._cluster = trainer, rollout, layout, cluster
        self._warn, self._topology, self._swap = warn, topology, swap
        self._waves: list[tuple[int, ...]] = []
        self._engines: list[Engine] = []
        self._lost: frozenset[int] = frozenset()

    async def connect(self) -> None:
        """Let engines export their parameters, and trainer ranks map them and agree on a plan.

        Call this once, when trainer and engines are up.

        Raises:
            SwapError: two ranks made different plans.
        """
        exports = await self._rollout.all("export_parameters")
        self._engines = [(self._layout, export) for export in exports]
        count = min(len(exports), 1 if self._swap == "drain" else _MOST_WAVES)
        self._waves = [tuple(range(first, len(exports), count)) for first in range(count)]
        await self._agree(await self._plan())

    async def push(self, version: PolicyVersion) -> SwapReport:
        """Bring all engines to a version.

        Raises:
            WorkerError, SwapError, ...: the objection that remained after the last replay. The engines
                concerned do not serve.
            LayoutError: a trainer rank that died was the only holder of a weight. The engines concerned do
                not serve.
            EngineError: an engine died or refused to commit.
        """
        start, votes, replays = time.perf_counter(), [], 0
        async with self._rollout.quiet():
            for wave in range(len(self._waves)):
                vote, repeated = await self._swap_wave(wave, version)
                votes.append(vote)
                replays += repeated
        return _report(version, votes, replays, time.perf_counter() - start)

    async def _swap_wave(self, wave: int, version: PolicyVersion) -> tuple[Vote, int]:
        """Swap the engines of a wave; returns the vote, and how often the weights were written again."""
        replays = 0
        await self._on_engines(wave, "begin_swap", version)
        vote = await self._write(wave)
        while vote.objection and replays < _MAX_REPLAYS:
            replays += 1
            self._warn(f"swap to {version}", f"writing version {version} again: {vote.objection}")
            lost = dead(vote.outcomes)
            if lost and self._topology is not None and self._topology.num_nodes > 1:
                raise vote.objection  # the process group between nodes is broken without them
            await self._leave_out(lost)
            vote = await self._write(wave)
        if vote.objection:
            raise vote.objection
        await self._on_engines(wave, "commit_swap", version)
        return vote, replays

    async def _write(self, wave: int) -> Vote:
        """Let every trainer rank write its share of a wave, then compare the engines' checksums."""
        outcomes = await self._on_trainer("write_weights", wave)
        if error := first_error(outcomes):
            return Vote(outcomes, 0, error)
        found = await self._on_engines(wave, "checksums")
        held = {(e, r, n): c for e, tp in found.items() for r, d in enumerate(tp) for n, c in d.items()}
        sums = expected(written.checksums for written in outcomes.values())
        engines = self._waves[wave]
        wanted = {(engines[e], rank, name): value for (e, rank, name), value in sums.items()}
        return Vote(outcomes, len(held), difference(wanted, held))

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
        placed = (self._engines, self._lost, self._topology, self._waves)
        return await self._on_trainer("connect", *placed, timeout_s=timeout_s)

    async def _agree(self, plans: Mapping[int, Any]) -> None:
        """Check that all ranks made the same plan.

        Raises:
            SwapError: two ranks made different plans. An error that a rank raised while planning goes first.
        """
        if error := first_error(plans):
            raise error
        if len(set(plans.values())) > 1:
            fields = await self._on_trainer("plan_fields")
            raise disagreement(plans, fields)

    async def _on_engines(self, wave: int, method: str, *args: Any) -> dict[int, Any]:
        """Call a method on the engines of a wave; returns engine -> result.

        Raises: what an engine raised.
        """
        found = await self._rollout.workers.outcomes(method, *args, ranks=self._waves[wave])
        if error := first_error(found):
            raise error
        return found

    async def _on_trainer(self, method: str, *args: Any, timeout_s: float | None = None) -> dict[int, Any]:
        """Call a method on every trainer rank that is not lost; returns rank -> result or error."""
        ranks = [rank for rank in range(len(self._trainer.workers)) if rank not in self._lost]
        if not ranks:
            raise WorkerError("every trainer rank died")
        return await self._trainer.workers.outcomes(method, *args, ranks=ranks, timeout_s=timeout_s)


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
        staging_bytes=max(share.staging_bytes for share in written),
        checksums_equal=True,
        replays=replays,
    )
