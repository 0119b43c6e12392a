"""The groups that engines are answering: which engine has which, and what comes back.

There is one open call to each engine that has groups. It returns those that ended since the last one, with
one object for their tokens, which stays in the object store. So the number of calls depends on the number of
engines and not on that of answers.

Waits: completed() waits for the engines.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hybridrl.cluster.group import WorkerGroup
from hybridrl.rollout.groups import FinishedGroup, Ticket
from hybridrl.types import Group, GroupTask, Trajectory


@dataclass(frozen=True, slots=True)
class _Open:
    ticket: Ticket
    engine: int

    @property
    def num_answers(self) -> int:
        return self.ticket.task.sampling.num_samples


class OpenGroups:
    """All calls come from one event loop."""

    def __init__(self, workers: WorkerGroup) -> None:
        self._workers = workers
        self._numbers = itertools.count()
        self._open: dict[int, _Open] = {}
        self._number_of: dict[int, int] = {}
        """Index of a prompt -> number of the ticket with which it was last submitted."""

        self._work: Counter[int] = Counter()
        """Open answers of each engine."""

        self.forgotten_tokens = 0
        """Sampled tokens of groups that had ended when they were cancelled."""

        self._calls: dict[int, asyncio.Task[None]] = {}
        self._completed: list[Group] = []
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    async def submit(self, tasks: Sequence[GroupTask]) -> None:
        """Give each group to the engine with the least work."""
        lots: dict[int, list[Ticket]] = {}
        for task in tasks:
            engine = min(range(len(self._workers)), key=self._work.__getitem__)
            ticket = Ticket(next(self._numbers), task)
            self._open[ticket.number] = _Open(ticket, engine)
            self._number_of[task.index] = ticket.number
            self._work[engine] += task.sampling.num_samples
            lots.setdefault(engine, []).append(ticket)
        await asyncio.gather(
            *(self._workers.one(engine, "submit", tickets) for engine, tickets in lots.items())
        )
        for engine in lots:
            if engine not in self._calls:
                self._calls[engine] = asyncio.create_task(self._collect(engine))

    async def completed(self) -> list[Group]:
        """Wait for groups that have ended, at least one."""
        while not self._completed:
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        groups, self._completed = self._completed, []
        return groups

    async def cancel(self, indices: Iterable[int]) -> None:
        """End open groups early. Those that have ended are forgotten, if `completed` did not return them."""
        indices = set(indices)
        ended = [group for group in self._completed if group.index in indices]
        self._completed = [group for group in self._completed if group.index not in indices]
        for group in ended:
            self._forget([*group.trajectories, *(group.greedy.trajectories if group.greedy else ())])
        numbers: dict[int, list[int]] = {}
        for index in indices & self._number_of.keys():
            found = self._close(self._number_of[index])
            numbers.setdefault(found.engine, []).append(found.ticket.number)
        await asyncio.gather(*(self._workers.one(engine, "cancel", lot) for engine, lot in numbers.items()))

    def stop(self) -> None:
        """Give up the open calls, at the end of a run."""
        for call in self._calls.values():
            call.cancel()

    async def _collect(self, engine: int) -> None:
        """Take what an engine has finished, as long as it has groups."""
        try:
            while self._work[engine]:
                finished = self._workers.actors[engine].finished.options(num_returns=2)
                metadata, block = finished.remote()
                for group in await self._workers.result(engine, "finished", metadata):
                    self._take(group, block)
        except Exception as error:  # handed to the caller of completed()
            self._failure = error
            self._news.set()
        finally:
            del self._calls[engine]

    def _take(self, group: FinishedGroup, block: object) -> None:
        if group.ticket not in self._open:  # it was cancelled while this was on its way
            self._forget([*group.trajectories, *([group.greedy] if group.greedy else ())])
            return
        task = self._close(group.ticket).ticket.task
        greedy = None if group.greedy is None else Group(task.prompt, [group.greedy], block, index=task.index)
        self._completed.append(
            Group(
                task.prompt,
                group.trajectories,
                block,
                index=task.index,
                greedy=greedy,
                failures=group.failures,
            )
        )
        self._news.set()

    def _forget(self, trajectories: Iterable[Trajectory]) -> None:
        self.forgotten_tokens += sum(trajectory.trained_tokens for trajectory in trajectories)

    def _close(self, number: int) -> _Open:
        found = self._open.pop(number)
        self._work[found.engine] -= found.num_answers
        if self._number_of[found.ticket.task.index] == number:
            del self._number_of[found.ticket.task.index]
        return found
