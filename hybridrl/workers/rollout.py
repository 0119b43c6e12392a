"""The RolloutEngine role over all engines, which are in the actors of engine_worker.py.

RayRollout has a gate for all else. A swap closes it, waits until no request runs, and opens it again once
every engine serves the new version. So no request is computed with weights that are being written. Single
requests may outlast a swap: if the engines are paused, the swap does not wait for them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.errors import EngineLostError
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.usage import total
from hybridrl.types import Group, GroupTask, Prompt, Sampling, Usage
from hybridrl.workers.open_groups import OpenGroups
from hybridrl.workers.replacing import LOSSES, Replacements

_STOP_S, _BEGIN_S = 60.0, 60.0
_MOST_BEAT_S = 30.0
"""Most seconds between two questions to an engine whether it is there."""


class RayRollout:
    """Implements RolloutEngine over a group of RolloutWorkers in data parallel."""

    def __init__(
        self,
        workers: WorkerGroup,
        cluster: ClusterConfig,
        parts: WorkerGroup | None = None,
        *,
        engines: Replacements | None = None,
        alive_timeout_s: float | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        """
        Args:
            parts: workers with the parts of these engines on other nodes, which start and stop with them;
                None if every engine is on one node.
            engines: replaces engines that are lost; None: a lost engine ends the run.
            alive_timeout_s: an engine that does nothing for so long is lost; None: nobody asks.
            numbers: of the tickets; None: from 0 on.
        """
        self.workers, self._cluster, self._parts = workers, cluster, parts
        self.engines = engines or Replacements(workers)
        self._groups = OpenGroups(workers, self.engines, numbers)
        self._alive_timeout_s, self._watching = alive_timeout_s, None
        self._running, self._single = 0, 0  # running requests, and how many of them are single requests
        self._open, self._pausing, self._paused = True, False, False
        self._changed = asyncio.Condition()

    @property
    def groups(self) -> list[WorkerGroup]:
        return [self.workers] if self._parts is None else [self.workers, self._parts]

    async def start(self) -> None:
        """Start all engines at the same time."""
        timeout_s = self._cluster.start_timeout_s
        await asyncio.gather(*(group.all("start", timeout_s=timeout_s) for group in self.groups))
        self._begin_watch()

    async def begin_again(self) -> "RayRollout":
        """The same engines for a run that goes back to its checkpoint: whatever they were asked is forgotten,
        and they serve after the next swap, which may have any version. This object is not used afterwards.

        Raises:
            EngineLostError: no engine answers.
            Exception: what an engine raised that is not replaced.
        """
        self._stop_waiting()
        await self.engines.begin_again()
        again = RayRollout(
            self.workers,
            self._cluster,
            self._parts,
            engines=self.engines,
            alive_timeout_s=self._alive_timeout_s,
            numbers=self._groups.numbers,
        )
        await again.on(self.engines.present, "begin_again", timeout_s=_BEGIN_S)
        if not self.engines.present:
            raise EngineLostError("no engine answers any more")
        again._begin_watch()
        return again

    def _begin_watch(self) -> None:
        if self._alive_timeout_s is not None:
            watch = self._watch(self._alive_timeout_s)
            self._watching = asyncio.create_task(self._groups.guarded(watch))

    async def stop(self) -> None:
        """End the engines' processes. This may be called after a failure."""
        self._stop_waiting()
        self.engines.stop()
        present = self.workers.outcomes("stop", ranks=self.engines.present, timeout_s=_STOP_S)
        parts = [self._parts.all("stop", timeout_s=_STOP_S)] if self._parts is not None else []
        await asyncio.gather(present, *parts)

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        async with self._requests(len(prompts) * sampling.num_samples):
            await self.engines.one_serves()
            engines = sorted(self.engines.serving)
            answers = await asyncio.gather(
                *(
                    self._answered(engine, prompts[share], _shifted(sampling, share.start))
                    for engine, share in zip(engines, _shares(len(prompts), len(engines)), strict=True)
                )
            )
        return [group for groups in answers for group in groups]

    async def submit(self, tasks: Sequence[GroupTask]) -> None:
        await self._groups.submit(tasks)

    async def completed(self) -> list[Group]:
        return await self._groups.completed()

    async def cancel(self, indices: Iterable[int]) -> None:
        await self._groups.cancel(indices)

    async def usage(self) -> Usage:
        """What the engines did since the last call. Seconds of engines that were lost are not in it."""
        groups, found = self._groups, await self._on("usage")
        for engine in found:
            groups.reported(engine)
        sums = total(found.values())
        forgotten, groups.forgotten_tokens = groups.forgotten_tokens, 0
        lost, groups.lost_tokens = groups.lost_tokens, 0
        asked_again, groups.asked_again = groups.asked_again, 0
        replaced, self.engines.replaced = self.engines.replaced, 0
        return replace(
            sums,
            sampled_tokens=sums.sampled_tokens + lost,
            aborted_tokens=sums.aborted_tokens + forgotten,
            asked_again=asked_again,
            replaced_engines=replaced,
            serving_engines=len(self.engines.serving),
        )

    async def request(self, engine: int, request: Request) -> Answer:
        """Answer one prompt on the engine of the caller's choice, which may have its prefix cached."""
        async with self._requests(1, single=True):
            return await self.workers.one(engine, "request", request)

    async def abort(self, engine: int, ids: Sequence[str]) -> None:
        """End requests to an engine early, also on a paused engine.

        A request that waits for the end of a swap has not reached the engine yet, and is not ended.
        """
        await self.workers.one(engine, "abort", ids)

    async def pause(self) -> None:
        """Stop sampling on all engines until `continue_`. Single requests stay, even across a swap.

        This waits for running batches; later batches wait for `continue_`.
        """
        async with self._changed:
            self._pausing = True
            await self._changed.wait_for(lambda: self._running == self._single)
        await self.all("pause")
        async with self._changed:
            self._paused = True
            self._changed.notify_all()

    async def continue_(self) -> None:
        """Resume sampling; this waits for the end of a swap that is in progress."""
        async with self._requests(1, single=True):  # otherwise a swap could begin before all engines resume
            self._paused = False
            await self.all("continue_")
        async with self._changed:
            self._pausing = False
            self._changed.notify_all()

    async def _answered(self, engine: int, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """Answers of an engine; if it is lost, of another one."""
        while True:
            start = self.engines.starts[engine]
            try:
                return await self._generate_on(engine, prompts, sampling)
            except LOSSES as error:
                self.engines.lose(engine, error, start=start)
            await self.engines.one_serves()
            engine = min(self.engines.serving)

    async def _generate_on(self, rank: int, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        if not prompts:
            return []
        method = self.workers.actors[rank].generate.options(num_returns=2)
        metadata, block = method.remote(list(prompts), sampling)
        found = await self.workers.result(rank, "generate", metadata)
        return [
            Group(prompt, list(trajectories), block)
            for prompt, trajectories in zip(prompts, found, strict=True)
        ]

    @contextlib.asynccontextmanager
    async def _requests(self, count: int, *, single: bool = False) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._open and (single or not self._pausing))
            self._running, self._single = self._running + count, self._single + single * count
        try:
            yield
        finally:
            async with self._changed:
                self._running, self._single = self._running - count, self._single - single * count
                self._changed.notify_all()

    async def _close(self) -> None:
        async with self._changed:
            self._open = False
            await self._changed.wait_for(lambda: self._running == self._single * self._paused)

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """A context in which nothing is sampled. After an error the gate stays closed, because these engines
        must not serve."""
        await self._close()
        self.engines.may_start.set()
        yield
        async with self._changed:
            self._open = True
            self._changed.notify_all()

    async def sleep(self) -> None:
        """Free the engines' key-value caches for the trainer. Later requests wait for the next swap."""
        await self._close()
        self.engines.may_start.clear()  # a new engine would take the memory that this frees
        await self.all("release_cache")

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of all engines that serve; returns the results of those that are not lost by that."""
        return list((await self._on(method, *args)).values())

    async def _on(self, method: str, *args: Any) -> dict[int, Any]:
        return await self.on(sorted(self.engines.serving), method, *args)

    async def on(
        self, engines: Sequence[int], method: str, *args: Any, timeout_s: float | None = None
    ) -> dict[int, Any]:
        """Call a method of some engines; returns engine -> result, without those that are lost by that.

        Raises: what an engine raised that is not replaced.
        """
        if not engines:
            return {}
        starts = {engine: self.engines.starts[engine] for engine in engines}
        found = await self.workers.outcomes(method, *args, ranks=engines, timeout_s=timeout_s)
        for engine, outcome in found.items():
            if isinstance(outcome, BaseException):
                self.engines.lose(engine, outcome, start=starts[engine])
        return {e: outcome for e, outcome in found.items() if not isinstance(outcome, BaseException)}

    def _stop_waiting(self) -> None:
        self._groups.stop()
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self, timeout_s: float) -> None:
        """Ask engines again and again whether they are there."""
        while True:
            await asyncio.sleep(min(timeout_s / 4, _MOST_BEAT_S))
            await self.on(self.engines.present, "alive", timeout_s=timeout_s)


def _shares(count: int, num_engines: int) -> list[slice]:
    """Contiguous shares of `count` prompts, as even as possible."""
    edges = [count * i // num_engines for i in range(num_engines + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _shifted(sampling: Sampling, first_prompt: int) -> Sampling:
    """Sampling options of an engine whose share begins with `first_prompt`.

    Seeds belong to prompts, so answers do not depend on the number of engines.
    """
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=sampling.seed + first_prompt * sampling.num_samples)
