"""The groups that engines are answering: which engine has which, and what comes back.

There is one open call to each engine that has groups. It returns those that ended since the last one, with
one object for their tokens, which stays in the object store. So the number of calls depends on the number of
engines and not on that of answers.

Groups of an engine that is lost are asked again: each gets another ticket and goes to another engine, or
waits for one. Seeds belong to prompts, so the answers are those that the lost engine would have given.

Waits: completed() waits for the engines.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.cluster.group import WorkerGroup
from hybridrl.rollout.groups import FinishedGroup, Ticket
from hybridrl.types import Group, GroupTask, Trajectory
from hybridrl.workers.replacing import LOSSES, Replacements


@dataclass(frozen=True, slots=True)
class _Open:
    ticket: Ticket
    engine: int | None
    """None: no engine serves."""

    @property
    def num_answers(self) -> int:
        return self.ticket.task.sampling.num_samples


class OpenGroups:
    """All calls come from one event loop."""

    def __init__(
        self,
        workers: WorkerGroup,
        engines: Replacements | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """
        Args:
            engines: which engines serve; None: all do, and one that fails ends the wait for groups.
            numbers: of the tickets, which no engine has seen; None: from 0 on.
        """
        self._workers, self._engines = workers, engines or Replacements(workers)
        self._engines.on_lost.append(self._ask_others)
        self._engines.on_serving.append(self._ask_again)
        self._engines.on_failure.append(self.fail)
        self.numbers = itertools.count() if numbers is None else numbers
        self._open: dict[int, _Open] = {}
        self._number_of: dict[int, int] = {}
        """Index of a prompt -> number of the ticket with which it was last submitted."""

        self._work: Counter[int] = Counter()
        """Open answers of each engine."""

        self.forgotten_tokens = 0
        """Sampled tokens of groups that had ended when they were cancelled."""

        self.asked_again = 0
        """Groups of lost engines that were asked again."""

        self.lost_tokens = 0
        """Sampled tokens of ended groups that a lost engine can no longer report."""

        self._unreported: Counter[int] = Counter()
        """Sampled tokens of groups that each engine has ended since its last report."""

        self._asking: set[asyncio.Task[None]] = set()

        self._calls: dict[int, asyncio.Task[None]] = {}
        self._completed: list[Group] = []
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    async def submit(self, tasks: Sequence[GroupTask]) -> None:
        """Give each group to the engine with the least work; if none serves, to the next one that does."""
        await self._send(self._assigned(tasks))

    def _assigned(self, tasks: Iterable[GroupTask]) -> dict[int, list[Ticket]]:
        """Open groups; returns the new tickets of each engine."""
        lots: dict[int, list[Ticket]] = {}
        for task in tasks:
            engine = min(sorted(self._engines.serving), key=self._work.__getitem__, default=None)
            ticket = Ticket(next(self.numbers), task)
            self._open[ticket.number] = _Open(ticket, engine)
            self._number_of[task.index] = ticket.number
            if engine is not None:
                self._work[engine] += task.sampling.num_samples
                lots.setdefault(engine, []).append(ticket)
        return lots

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
            if found.engine is not None:
                numbers.setdefault(found.engine, []).append(found.ticket.number)
        await asyncio.gather(*(self._call(engine, "cancel", lot) for engine, lot in numbers.items()))

    def reported(self, engine: int) -> None:
        """An engine has reported its tokens."""
        del self._unreported[engine]

    def stop(self) -> None:
        """Give up the open calls, at the end of a run."""
        for call in (*self._calls.values(), *self._asking):
            call.cancel()

    async def _send(self, lots: Mapping[int, Sequence[Ticket]]) -> None:
        await asyncio.gather(*(self._call(engine, "submit", tickets) for engine, tickets in lots.items()))
        for engine in lots:
            if engine not in self._calls and self._work[engine]:
                self._calls[engine] = asyncio.create_task(self.guarded(self._collect(engine)))

    async def _call(self, engine: int, method: str, argument: Sequence[Any]) -> None:
        """Call an engine, which may be lost by that.

        Raises: what an engine raised that is not replaced.
        """
        start = self._engines.starts[engine]
        try:
            await self._workers.one(engine, method, argument)
        except LOSSES as error:
            self._engines.lose(engine, error, start=start)

    async def _collect(self, engine: int) -> None:
        """Take what an engine has finished, as long as it has groups."""
        start = self._engines.starts[engine]
        try:
            while self._work[engine]:
                finished = self._workers.actors[engine].finished.options(num_returns=2)
                metadata, block = finished.remote()
                for group in await self._workers.result(engine, "finished", metadata):
                    self._take(group, block)
        except LOSSES as error:
            self._engines.lose(engine, error, start=start)
        finally:
            if self._calls.get(engine) is asyncio.current_task():
                del self._calls[engine]

    def _ask_others(self, engine: int) -> None:
        """Ask the groups of a lost engine again."""
        call = self._calls.pop(engine, None)
        if call is not None and call is not asyncio.current_task():
            call.cancel()
        self.lost_tokens += self._unreported.pop(engine, 0)
        self._ask_again(engine)
        del self._work[engine]

    def _ask_again(self, engine: int) -> None:
        """Ask the groups of an engine, and those that wait for one, again."""
        found = [one for one in self._open.values() if one.engine in (None, engine)]
        for one in found:
            self._close(one.ticket.number)
        if found:
            self.asked_again += sum(one.engine is not None for one in found)
            lots = self._assigned([one.ticket.task for one in found])
            task = asyncio.create_task(self.guarded(self._send(lots)))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def guarded(self, job: Coroutine[Any, Any, None]) -> None:
        """Run a job whose error ends the wait for groups."""
        try:
            await job
        except Exception as error:  # handed to the caller of completed()
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the wait for groups."""
        self._failure = self._failure or error
        self._news.set()

    def _take(self, group: FinishedGroup, block: object) -> None:
        if group.ticket not in self._open:  # it was cancelled while this was on its way
            self.forgotten_tokens += _sampled(group)
            return
        found = self._close(group.ticket)
        task = found.ticket.task
        if found.engine is not None:
            self._unreported[found.engine] += _sampled(group)
        greedy = None if group.greedy is None else Group(task.prompt, [group.greedy], block, index=task.index)
        self._completed.append(
            Group(
                task.prompt,
                group.trajectories,
                block,
                index=task.index,
                greedy=greedy,
                failures=group.failures,
                overdue=group.overdue,
            )
        )
        self._news.set()

    def _forget(self, trajectories: Iterable[Trajectory]) -> None:
        self.forgotten_tokens += sum(trajectory.trained_tokens for trajectory in trajectories)

    def _close(self, number: int) -> _Open:
        found = self._open.pop(number)
        if found.engine is not None:
            self._work[found.engine] -= found.num_answers
        if self._number_of[found.ticket.task.index] == number:
            del self._number_of[found.ticket.task.index]
        return found


def _sampled(group: FinishedGroup) -> int:
    trajectories = [*group.trajectories, *([group.greedy] if group.greedy else ())]
    return sum(trajectory.trained_tokens for trajectory in trajectories)
