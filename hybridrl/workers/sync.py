"""The WeightSync role: trainer ranks write into the engines' own parameters, then every rank votes.

The order of a swap, over all engines: close the gate -> begin (engines DIRTY) -> write -> vote -> commit ->
open the gate. Writes put absolute values, so a write is repeated if a rank votes no. Trainer ranks that died
are then left out: the others plan again, and replicas write the missing shares. With several nodes the swap
fails instead. No engine commits before every trainer and engine rank has voted yes. After an error the gate
stays closed: nothing is sampled from weights that were not committed.

Waits: push() waits for running requests, then for every remaining trainer rank, then for every engine.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import WorkerError
from hybridrl.layout.base import Layout
from hybridrl.reshard.agreement import difference, disagreement, expected
from hybridrl.reshard.swap import Engine, SwapWritten
from hybridrl.reshard.topology import Topology
from hybridrl.types import PolicyVersion, SwapReport
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.trainer import RayTrainer

_MAX_REPLAYS = 2


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
    ) -> None:
        """
        Args:
            layout: layout of every engine.
            warn: called with (about, text) when a write is repeated.
            topology: placement of all ranks; None if all are on one node and every rank reaches every engine.
        """
        self._trainer, self._rollout, self._layout, self._cluster = trainer, rollout, layout, cluster
        self._warn, self._topology = warn, topology
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
        await self._agree(await self._plan())

    async def push(self, version: PolicyVersion) -> SwapReport:
        """Bring all engines to a version.

        Raises:
            WorkerError, SwapError, ...: the objection that remained after the last replay. No engine serves.
            LayoutError: a trainer rank that died was the only holder of a weight. No engine serves.
            EngineError: an engine died or refused to commit.
        """
        start, replays = time.perf_counter(), 0
        async with self._rollout.quiet():
            await self._rollout.all("begin_swap", version)
            vote = await self._write()
            while vote.objection and replays < _MAX_REPLAYS:
                replays += 1
                self._warn(f"swap to {version}", f"writing version {version} again: {vote.objection}")
                lost = dead(vote.outcomes)
                if lost and self._topology is not None and self._topology.num_nodes > 1:
                    raise vote.objection  # the process group between nodes is broken without them
                await self._leave_out(lost)
                vote = await self._write()
            if vote.objection:
                raise vote.objection
            await self._rollout.all("commit_swap", version)
        return _report(version, vote, replays, time.perf_counter() - start)

    async def _write(self) -> Vote:
        """Let every trainer rank write its share, then compare the engines' checksums."""
        outcomes = await self._on_trainer("write_weights")
        if error := first_error(outcomes):
            return Vote(outcomes, 0, error)
        found = await self._rollout.all("checksums")
        held = {(e, r, n): c for e, tp in enumerate(found) for r, d in enumerate(tp) for n, c in d.items()}
        return Vote(outcomes, len(held), difference(expected(w.checksums for w in outcomes.values()), held))

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
        placed = (self._engines, self._lost, self._topology)
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


def _report(version: PolicyVersion, vote: Vote, replays: int, time_s: float) -> SwapReport:
    return SwapReport(
        version=version,
        time_s=time_s,
        num_tensors=vote.num_tensors,
        written_bytes=sum(share.bytes for share in vote.written),
        sent_bytes=sum(share.sent_bytes for share in vote.written),
        staging_bytes=max(share.staging_bytes for share in vote.written),
        checksums_equal=True,
        replays=replays,
    )
