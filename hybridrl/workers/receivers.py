"""Receivers: processes beside engines on dedicated devices, which write for the trainer.

Only a process on an engine's device can map the engine's memory. Where trainer and engines share devices this
is a trainer rank; where they do not, it is a receiver, one for each rank of each engine. In the communicator
of the swap it is a rank without weights of the trainer: it maps the engine rank on its device, writes what
arrives for it, and passes on what other engine ranks of its node need too.

Waits: a receiver waits in `connect` for all ranks of the new group, and in `write_weights` for the ranks that
send to it. The engine's own process waits for nothing.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import ray

from hybridrl.cluster.group import WorkerGroup
from hybridrl.errors import DeadlineError, WorkerError
from hybridrl.hosts import stacks
from hybridrl.reshard.communicator import Rendezvous
from hybridrl.workers.swap_rank import Receiver

_ALIVE_S = 60.0
"""How long a receiver that does nothing may take to answer."""


@ray.remote(max_restarts=0)
class ReceiverWorker(Receiver):
    def pid(self) -> int:
        return stacks.answer()


class Receivers:
    """The receivers of all engines, engine by engine."""

    def __init__(self, workers: WorkerGroup, per_engine: int, address: str, start_timeout_s: float) -> None:
        """
        Args:
            per_engine: ranks of an engine.
            address: where trainer ranks and receivers meet, as in Rendezvous.
        """
        self.workers, self._per_engine, self._address = workers, per_engine, address
        self._start_timeout_s = start_timeout_s
        self._groups = itertools.count()

    def rendezvous(self, num_trainer_ranks: int, engines: Sequence[int]) -> Rendezvous:
        """A new group of the trainer ranks and the receivers of these engines."""
        size = num_trainer_ranks + len(engines) * self._per_engine
        return Rendezvous(self._address, str(next(self._groups)), size)

    async def outcomes(
        self, engines: Sequence[int], method: str, *args: Any, timeout_s: float | None = None
    ) -> list[Any]:
        """Call a method on the receivers of some engines; returns results or errors, engine by engine."""
        ranks = [rank for engine in engines for rank in self._of(engine)]
        found = await self.workers.outcomes(method, *args, ranks=ranks, timeout_s=timeout_s)
        return [found[rank] for rank in ranks]

    async def start_ended(self, engines: Sequence[int]) -> dict[int, BaseException | None]:
        """Start receivers again that have ended.

        Returns:
            Each engine of which a receiver had ended -> None, or why the new one is not there.
        """
        answers = await self.outcomes(engines, "pid", timeout_s=_ALIVE_S)
        ranks = [rank for engine in engines for rank in self._of(engine)]
        ended = [rank for rank, answer in zip(ranks, answers, strict=True) if isinstance(answer, _ENDS)]
        renewals = (self.workers.renew(rank, timeout_s=self._start_timeout_s) for rank in ended)
        outcomes = await asyncio.gather(*renewals, return_exceptions=True)
        found: dict[int, BaseException | None] = {}
        for rank, outcome in zip(ended, outcomes, strict=True):
            engine = rank // self._per_engine
            found[engine] = found.get(engine) or outcome
        return found

    def _of(self, engine: int) -> range:
        return range(engine * self._per_engine, (engine + 1) * self._per_engine)


_ENDS = (WorkerError, DeadlineError)
