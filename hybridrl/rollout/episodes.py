"""The episode runner beside an engine: groups come in, each sample is an episode, finished groups go out.

An episode asks the engine request by request: once, or, with an environment, once a turn (turns.py). At most
`most_requests` requests are inside the engine and the others wait here. So a swap that waits for running
requests waits for no others, and paused requests go on before new ones. A later turn of an episode goes
before first turns: its prefix is cached.

Waits: an episode waits for a place in the engine, which a swap closes, and for its answers. finished() waits
for the last episode of a group.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.environments.failures import refuse_failures
from hybridrl.errors import EngineError
from hybridrl.rollout.answers import spans_of
from hybridrl.rollout.base import Answer, Engine, Request
from hybridrl.rollout.groups import (
    FinishedGroup,
    OpenGroup,
    RunningEpisode,
    Ticket,
    episodes_of,
    limited,
    request_of,
    results,
    world_seed,
)
from hybridrl.rollout.places import Places
from hybridrl.rollout.turns import Outcome, Player
from hybridrl.rollout.usage import UsageClock
from hybridrl.types import GroupTask, PolicyVersion, Prompt, Sampling, Trajectory, Usage

LOT_S = 0.02
"""Seconds that finished groups wait for others, which then travel in the same message."""


_END_S = 10.0
"""Seconds that episodes have to end which are ended early."""


class _GroupCancelledError(Exception):
    """Ends the episodes of a cancelled group."""


class EpisodeRunner:
    """All calls come from one event loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        most_requests: int | None = None,
        player: Player | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            most_requests: most requests inside the engine. None: any number, so that all requests of a call
                reach the engine together, which makes its batches repeatable.
            player: plays episodes of several turns. None: an episode is one answer.
        """
        self._engine, self._player = engine, player
        self._evaluations = itertools.count(1)
        self._places, self._clock = Places(most_requests), UsageClock(now)
        self._open: dict[int, OpenGroup] = {}
        self._finished: list[OpenGroup] = []
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._paused = self._keeps_cache = False
        self._compared: PolicyVersion | None = None
        self._comparisons: set[asyncio.Task[None]] = set()

    def submit(self, tickets: Iterable[Ticket]) -> None:
        """Start the episodes of these groups."""
        for ticket in tickets:
            group = self._open[ticket.number] = OpenGroup(ticket, list(episodes_of(ticket)))
            self._begin(group)
        self._tell_clock()

    async def play(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], TokenBlock]:
        """Answer prompts with whole episodes: Engine.generate for an evaluation with an environment.

        Raises:
            EnvironmentFailedError: the environments of too many episodes failed.
            Exception: what the engine or an episode raised.
        """
        assert self._player is not None and sampling.seed is not None
        loop, groups = asyncio.get_running_loop(), []
        for i, prompt in enumerate(prompts):
            own = replace(sampling, seed=sampling.seed + i * sampling.num_samples)
            ticket = Ticket(-next(self._evaluations), GroupTask(index=-1, prompt=prompt, sampling=own))
            groups.append(OpenGroup(ticket, list(episodes_of(ticket)), evaluation=loop.create_future()))
            self._begin(groups[-1])
        await asyncio.gather(*(group.evaluation for group in groups if group.evaluation))
        found, block = results(groups, self._version)
        assert block is not None, "there is at least one prompt"
        failures = [failure for group in found for failure in group.failures]
        played = sum(len(group.episodes) for group in groups) - len(failures)
        refuse_failures(failures, played=played, what="an evaluation")
        return [group.trajectories for group in found], block

    async def finished(self) -> tuple[list[FinishedGroup], TokenBlock | None]:
        """Wait for finished groups and pack their tokens; ([], None) if no group is open any more.

        Raises: what the engine or an episode raised.
        """
        await self._until(lambda: bool(self._finished) or not self._open)
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until(lambda: not self._open), LOT_S)
        groups, self._finished = self._finished, []
        return results(groups, self._version)

    async def cancel(self, numbers: Iterable[int]) -> None:
        """End open groups early; tickets that are not open are ignored. What they sampled is counted."""
        groups = [self._open.pop(number) for number in numbers if number in self._open]
        inside: list[str] = []
        for group in groups:
            group.cancelled = True
            self._clock.count(aborted=group.sampled_tokens)
            for running in group.episodes:
                if running.inside:
                    inside += running.inside
                elif running.task is not None:
                    running.task.cancel()
        self._tell_clock()
        self._news.set()
        if inside:
            await self._engine.abort(inside)

    async def end(self) -> None:
        """End all groups that train early, and wait until nothing runs of them. The runner is not used
        afterwards."""
        episodes = [episode for group in self._open.values() for episode in group.episodes]
        tasks = [*self._comparisons, *(episode.task for episode in episodes if episode.task is not None)]
        await self.cancel(list(self._open))
        if self._comparisons:
            await self._engine.abort([_comparison(self._compared)])
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_END_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

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

    @property
    def _version(self) -> PolicyVersion:
        """Version of episodes without a sampled token, which only environments make."""
        return 0 if self._player is None else self._engine.session.version or 0

    def _begin(self, group: OpenGroup) -> None:
        group.num_open = len(group.episodes)
        for running in group.episodes:
            running.task = asyncio.create_task(self._run(group, running))

    async def _run(self, group: OpenGroup, running: RunningEpisode) -> None:
        try:
            if self._player is None:
                running.answer = await self._ask(group, running, group.ticket.task.prompt.token_ids)
            else:
                running.outcome = await self._play(self._player, group, running)
        except _GroupCancelledError:
            return
        except Exception as error:  # handed to the caller of finished() or play()
            self._fail(group, error)
            return
        group.num_open -= 1
        if group.num_open or group.cancelled:
            return
        if group.evaluation is not None:
            group.evaluation.set_result(None)
            return
        del self._open[group.ticket.number]
        self._finished.append(group)
        self._tell_clock()
        self._news.set()

    def _fail(self, group: OpenGroup, error: Exception) -> None:
        if group.evaluation is None:
            self._failure = self._failure or error
            self._news.set()
        elif not group.evaluation.done():
            group.evaluation.set_exception(error)

    async def _play(self, player: Player, group: OpenGroup, running: RunningEpisode) -> Outcome:
        async def ask(
            token_ids: Sequence[int],
            *,
            turn: int = 0,
            most: int | None = None,
            stop_token_ids: tuple[int, ...] = (),
            arrays: Mapping[str, np.ndarray] | None = None,
        ) -> Answer:
            sampling = limited(running.sampling, most, stop_token_ids)
            return await self._ask(group, running, token_ids, turn, sampling, arrays)

        task = group.ticket.task
        heldout = group.evaluation is not None
        outcome = await player.play(task.prompt, world_seed(task), ask, heldout=heldout)
        if group.evaluation is None:
            self._clock.count(aborted=0 if group.cancelled else outcome.lost_tokens)
            group.sampled_tokens -= outcome.lost_tokens
            self._clock.add(outcome.sums)
        return outcome

    async def _ask(
        self,
        group: OpenGroup,
        running: RunningEpisode,
        token_ids: Sequence[int],
        turn: int = 0,
        sampling: Sampling | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> Answer:
        request = request_of(group.ticket, running, token_ids, turn, sampling or running.sampling)
        if arrays is not None:
            request = replace(request, arrays=arrays)
        await self._places.enter(first=turn > 0)
        try:
            if group.cancelled:
                raise _GroupCancelledError
            running.inside.add(request.id)
            self._tell_clock()
            answer = await self._engine.request(request)
        finally:
            running.inside.discard(request.id)
            self._places.leave()
            self._tell_clock()
        if group.evaluation is None:
            self._count(group, answer, len(token_ids))
            if turn and answer.cached_tokens is not None:
                self._clock.add({"cached": answer.cached_tokens, "cacheable": len(token_ids)})
        if self._keeps_cache and answer.finish != "abort" and len(spans_of(answer.version_T)) > 1:
            self._compare_soon(request, answer)
        if group.cancelled:
            raise _GroupCancelledError
        return answer

    def _count(self, group: OpenGroup, answer: Answer, prompt_tokens: int) -> None:
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
            id=_comparison(version),
            token_ids=(*request.token_ids, *tokens[:-1]),
            sampling=replace(request.sampling, max_response_tokens=1),
            arrays=request.arrays,
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


def _comparison(version: PolicyVersion | None) -> str:
    """Id of the request that compares a token of a version."""
    return f"compare/{version}"


def _recomputed(answer: Answer, prompt_tokens: int) -> int:
    """Tokens whose keys and values were computed again: all before each change of the version."""
    if not len(answer.version_T) or answer.version_T[0] == answer.version_T[-1]:
        return 0
    ends = accumulate(count for _, count in spans_of(answer.version_T)[:-1])
    return sum(prompt_tokens + end for end in ends)
