"""The episode runner beside an engine: groups come in, each sample is an episode, finished groups go out.

An episode is a coroutine that asks the engine request by request; today it asks once. At most `most_requests`
requests are inside the engine and the others wait here. So a swap that waits for running requests waits for
no others, and paused requests go on before new ones. A later turn of an episode goes before first turns: its
prefix is cached.

Waits: an episode waits for a place in the engine, which a swap closes, and for its answers. finished() waits
for the last episode of a group.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from hybridrl.batch import TokenBlock
from hybridrl.errors import EngineError
from hybridrl.rollout.answers import packed, spans_of
from hybridrl.rollout.base import Answer, Engine, Request
from hybridrl.rollout.places import Places
from hybridrl.rollout.usage import UsageClock
from hybridrl.seeds import sample_seed
from hybridrl.types import GroupTask, PolicyVersion, Prompt, Sampling, Trajectory, Usage

LOT_S = 0.02
"""Seconds that finished groups wait for others, which then travel in the same message."""

AskTurn = Callable[[Sequence[int]], Awaitable[Answer]]
"""Asks the engine to continue these tokens; the n-th call of an episode is its turn n."""

Episode = Callable[[Prompt, AskTurn], Awaitable[Answer]]


async def single_turn(prompt: Prompt, ask: AskTurn) -> Answer:
    return await ask(prompt.token_ids)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted group. A task that is submitted again gets another number."""

    number: int
    task: GroupTask


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    ticket: int
    """Number of the ticket."""

    trajectories: list[Trajectory]
    greedy: Trajectory | None


@dataclass(slots=True, eq=False)
class _Running:
    """An episode in progress."""

    name: str
    sampling: Sampling
    sample: int
    """Which sample of the group it is; its seeds depend on that."""

    task: asyncio.Task[None] | None = None
    turns: int = 0
    request: Request | None = None
    """Its request inside the engine."""

    answer: Answer | None = None
    """What the episode returned."""


@dataclass(slots=True, eq=False)
class _OpenGroup:
    ticket: Ticket
    episodes: list[_Running]
    """One per sample, then the greedy one if there is one."""

    num_open: int = 0
    sampled_tokens: int = 0
    cancelled: bool = False


class _GroupCancelledError(Exception):
    """Ends the episodes of a cancelled group."""


class EpisodeRunner:
    """All calls come from one event loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        most_requests: int | None = None,
        episode: Episode = single_turn,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            most_requests: most requests inside the engine. None: any number, so that all requests of a call
                reach the engine together, which makes its batches repeatable.
        """
        self._engine, self._episode = engine, episode
        self._places, self._clock = Places(most_requests), UsageClock(now)
        self._open: dict[int, _OpenGroup] = {}
        self._finished: list[_OpenGroup] = []
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._paused = self._keeps_cache = False
        self._compared: PolicyVersion | None = None
        self._comparisons: set[asyncio.Task[None]] = set()

    def submit(self, tickets: Iterable[Ticket]) -> None:
        """Start the episodes of these groups."""
        for ticket in tickets:
            group = _OpenGroup(ticket, list(_episodes(ticket)))
            self._open[ticket.number], group.num_open = group, len(group.episodes)
            for running in group.episodes:
                running.task = asyncio.create_task(self._run(group, running))
        self._tell_clock()

    async def finished(self) -> tuple[list[FinishedGroup], TokenBlock | None]:
        """Wait for finished groups and pack their tokens; ([], None) if no group is open any more.

        Raises: what the engine or an episode raised.
        """
        await self._until(lambda: bool(self._finished) or not self._open)
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until(lambda: not self._open), LOT_S)
        groups, self._finished = self._finished, []
        return _results(groups)

    async def cancel(self, numbers: Iterable[int]) -> None:
        """End open groups early; tickets that are not open are ignored. What they sampled is counted."""
        groups = [self._open.pop(number) for number in numbers if number in self._open]
        inside: list[str] = []
        for group in groups:
            group.cancelled = True
            self._clock.count(aborted=group.sampled_tokens)
            for running in group.episodes:
                if running.request is not None:
                    inside.append(running.request.id)
                elif running.task is not None:
                    running.task.cancel()
        self._tell_clock()
        self._news.set()
        if inside:
            await self._engine.abort(inside)

    def hold(self) -> None:
        """Let no further request into the engine until `go_on`. Those inside go on."""
        self._places.close()
        self._tell_clock()

    async def pause(self, *, keep_cache: bool = False) -> None:
        """Let no request run until `go_on`. Those inside stay there.

        Args:
            keep_cache: whether they keep the key-value cache of the weights until now.
        """
        self._paused, self._keeps_cache = True, keep_cache
        self.hold()
        spent_s = await self._engine.pause(keep_cache=keep_cache)
        if spent_s is not None:
            self._clock.recompute(spent_s)

    async def go_on(self) -> None:
        """End `hold` or `pause`; the engine serves."""
        if self._paused:
            await self._engine.continue_()
            self._paused = False
        self._places.open()
        self._tell_clock()

    def usage(self) -> Usage:
        """What the engine did since the last call."""
        return self._clock.take()

    async def _run(self, group: _OpenGroup, running: _Running) -> None:
        async def ask(token_ids: Sequence[int]) -> Answer:
            return await self._ask(group, running, token_ids)

        try:
            running.answer = await self._episode(group.ticket.task.prompt, ask)
        except _GroupCancelledError:
            return
        except Exception as error:  # handed to the caller of finished()
            self._failure = self._failure or error
            self._news.set()
            return
        group.num_open -= 1
        if not group.num_open and not group.cancelled:
            del self._open[group.ticket.number]
            self._finished.append(group)
            self._tell_clock()
            self._news.set()

    async def _ask(self, group: _OpenGroup, running: _Running, token_ids: Sequence[int]) -> Answer:
        await self._places.enter(first=running.turns > 0)
        try:
            if group.cancelled:
                raise _GroupCancelledError
            request = running.request = _request(group.ticket.number, running, token_ids)
            self._tell_clock()
            answer = await self._engine.request(request)
        finally:
            running.request = None
            self._places.leave()
            self._tell_clock()
        running.turns += 1
        self._count(group, answer, len(token_ids))
        if self._keeps_cache and answer.finish != "abort" and len(spans_of(answer.version_T)) > 1:
            self._compare_soon(request, answer)
        if group.cancelled:
            raise _GroupCancelledError
        return answer

    def _count(self, group: _OpenGroup, answer: Answer, prompt_tokens: int) -> None:
        sampled = len(answer.token_T)
        group.sampled_tokens += sampled
        self._clock.count(
            sampled=sampled,
            aborted=sampled * group.cancelled,
            recomputed=0 if self._keeps_cache else _recomputed(answer, prompt_tokens),
        )

    def _compare_soon(self, request: Request, answer: Answer) -> None:
        """Compare the last token of one answer after each swap with what the weights alone give it."""
        version = int(answer.version_T[-1])
        if version != self._compared:
            self._compared = version
            task = asyncio.create_task(self._compare(request, answer, version))
            self._comparisons.add(task)
            task.add_done_callback(self._comparisons.discard)

    async def _compare(self, request: Request, answer: Answer, version: PolicyVersion) -> None:
        """Sample the last token again, with its seed, as an answer of one token: the draw depends on seed and
        position only, so it is the same token unless the probabilities differ a lot."""
        tokens = answer.token_T.tolist()
        again = Request(
            id=f"compare/{version}",
            token_ids=(*request.token_ids, *tokens[:-1]),
            sampling=replace(request.sampling, max_response_tokens=1),
        )
        await self._places.enter(first=True)
        self._tell_clock()
        try:
            found = await self._engine.request(again)
        except EngineError as error:
            self._failure = self._failure or error
            self._news.set()
            return
        finally:
            self._places.leave()
            self._tell_clock()
        if found.version_T.tolist() == [version] and found.token_T.tolist() == tokens[-1:]:
            self._clock.compare(abs(float(found.logp_T[0] - answer.logp_T[-1])))

    def _tell_clock(self) -> None:
        if self._places.closed and (self._paused or not self._places.taken):
            self._clock.turn("paused_s" if self._open else "idle_s")
        else:
            self._clock.turn("generating_s" if self._places.taken else "idle_s")

    async def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            if ready():
                return
            self._news.clear()
            await self._news.wait()


def _episodes(ticket: Ticket) -> Iterator[_Running]:
    task = ticket.task
    one = replace(task.sampling, num_samples=1)
    for sample in range(task.sampling.num_samples):
        yield _Running(str(sample), one, sample)
    if task.greedy is not None:
        yield _Running("greedy", replace(task.greedy, num_samples=1), 0)


def _request(ticket: int, running: _Running, token_ids: Sequence[int]) -> Request:
    sampling = running.sampling
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sample_seed(sampling.seed, running.sample, running.turns))
    return Request(
        id=f"{ticket}/{running.name}/{running.turns}", token_ids=tuple(token_ids), sampling=sampling
    )


def _recomputed(answer: Answer, prompt_tokens: int) -> int:
    """Tokens whose keys and values were computed again: all before each change of the version."""
    if not len(answer.version_T) or answer.version_T[0] == answer.version_T[-1]:
        return 0
    ends = accumulate(count for _, count in spans_of(answer.version_T)[:-1])
    return sum(prompt_tokens + end for end in ends)


def _results(groups: Sequence[_OpenGroup]) -> tuple[list[FinishedGroup], TokenBlock | None]:
    """What is known of the groups, and one block with the tokens of all of them."""
    if not groups:
        return [], None
    asked = [(group.ticket, running) for group in groups for running in group.episodes]
    answers = [running.answer for _, running in asked if running.answer is not None]
    trajectories, block = packed([ticket.task.prompt.token_ids for ticket, _ in asked], answers)
    rows = iter(trajectories)
    found: list[FinishedGroup] = []
    for group in groups:
        task = group.ticket.task
        samples = [next(rows) for _ in range(task.sampling.num_samples)]
        greedy = None if task.greedy is None else next(rows)
        found.append(FinishedGroup(group.ticket.number, samples, greedy))
    return found, block
