"""One engine per actor, and the RolloutEngine role over all of them.

Groups that train are submitted to an episode runner beside each engine (rollout/episodes.py). A swap lets
their running requests end, or pauses them, and holds back the others.

RayRollout has a gate for all else. A swap closes it, waits until no request runs, and opens it again once
every engine serves the new version. So no request is computed with weights that are being written. Single
requests may outlast a swap: if the engines are paused, the swap does not wait for them.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import ray

from hybridrl.batch import TokenBlock
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.schema import ClusterConfig
from hybridrl.data.pictures import PictureFormat
from hybridrl.errors import LayoutError
from hybridrl.faults import Fault
from hybridrl.hosts import stacks
from hybridrl.layout.base import Layout
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Answer, EngineKind, EngineSetup, Request
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import FinishedGroup, Ticket
from hybridrl.rollout.usage import total
from hybridrl.types import Group, GroupTask, PolicyVersion, Prompt, Sampling, Trajectory, Usage
from hybridrl.workers.open_groups import OpenGroups
from hybridrl.workers.pictures import shown, shown_in
from hybridrl.workers.planted import around_engine
from hybridrl.workers.replacing import LOSSES, Replacements
from hybridrl.workers.turns import TurnSetup

SwapMode = Literal["drain", "in_flight", "in_flight_keep_cache"]
"""Values of rollout.swap."""

_STOP_S = 60.0
_MOST_BEAT_S = 30.0
"""Most seconds between two questions to an engine whether it is there."""
_MOST_CALLS = 1_000_000
"""Concurrent calls of one actor. With Ray's default of 1000, as many paused requests would block `continue_`
and `abort`."""


# Ray's type stubs lack this option for classes.
@ray.remote(max_restarts=0, max_concurrency=_MOST_CALLS)  # pyright: ignore[reportCallIssue, reportArgumentType]
class RolloutWorker:
    _pictures: PictureFormat | None = None

    def __init__(
        self,
        kind: EngineKind,
        setup: EngineSetup,
        most_requests: int | None = None,
        swap: SwapMode = "drain",
        turns: TurnSetup | None = None,
        pictures: PictureFormat | None = None,
    ) -> None:
        """
        Args:
            most_requests: most requests of groups inside the engine, as in EpisodeRunner.
            swap: how the engine takes new weights while groups are open.
            turns: the environments of episodes; None: an episode is one answer.
            pictures: how pictures of prompts are given to the model; None: prompts have none.
        """
        self._kind, self._setup, self._most_requests, self._swap = kind, setup, most_requests, swap
        self._pictures = pictures
        self._turns, self._environments = turns, None
        self._faults: Sequence[Fault] = ()

    def pid(self) -> int:
        return stacks.answer()

    def plant(self, faults: Sequence[Fault]) -> None:
        self._faults = [*self._faults, *faults]

    async def start(self) -> None:
        self._engine, player = around_engine(self._kind.open(self._setup), self._faults), None
        if self._turns is not None:
            self._environments, player = await self._turns.open()
        self._runner = EpisodeRunner(self._engine, most_requests=self._most_requests, player=player)

    def stack_files(self) -> dict[int, str]:
        """Process id -> file, of the engine's processes that write their stacks at a signal."""
        return getattr(self._engine, "stack_files", {})

    async def submit(self, tickets: Sequence[Ticket]) -> None:
        self._runner.submit(await shown_in(self._pictures, tickets))

    async def finished(self) -> tuple[list[FinishedGroup], TokenBlock | None]:
        """Returns two objects: metadata for the controller, and tokens, which stay in the object store."""
        return await self._runner.finished()

    async def cancel(self, numbers: Sequence[int]) -> None:
        await self._runner.cancel(numbers)

    async def usage(self) -> Usage:
        return self._runner.usage()

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], TokenBlock]:
        """Returns two objects: metadata for the controller, and tokens, which stay in the object store."""
        prompts = await shown(self._pictures, prompts)
        if self._environments is not None:
            return await self._runner.play(prompts, sampling)
        return await self._engine.generate(prompts, sampling)

    async def request(self, request: Request) -> Answer:
        return await self._engine.request(request)

    async def abort(self, ids: Sequence[str]) -> None:
        await self._engine.abort(ids)

    async def pause(self) -> None:
        await self._engine.pause()

    async def continue_(self) -> None:
        await self._engine.continue_()

    def export_parameters(self) -> list[dict[str, SharedTensor]]:
        return self._engine.export_parameters()

    async def probe_loader(self, layout: Layout) -> LayoutError | None:
        return await self._engine.probe_loader(layout)

    async def release_cache(self) -> None:
        await self._stop_requests()
        await self._engine.release_cache()

    async def begin_swap(self, version: PolicyVersion) -> None:
        """Let requests end, or pause them; then parameters may be written."""
        await self._stop_requests()
        await self._engine.begin_swap(version)

    async def _stop_requests(self) -> None:
        if self._swap == "drain":
            self._runner.hold()
        else:
            await self._runner.pause(keep_cache=self._swap == "in_flight_keep_cache")

    async def load_bucket(self, bucket: Bucket, buffer: SharedTensor, first: bool, last: bool) -> None:
        await self._engine.load_bucket(bucket, buffer, first=first, last=last)

    async def checksums(self) -> list[dict[str, int]]:
        return await self._engine.checksums()

    async def commit_swap(self, version: PolicyVersion) -> None:
        await self._engine.commit_swap(version)
        await self._runner.go_on()

    async def alive(self) -> None:
        """Return if this worker and the host process of its engine do anything at all."""
        await self._engine.abort([])

    async def end(self) -> None:
        """End the engine, whatever it does, and the environments of this worker."""
        for pid in getattr(self._engine, "process_ids", ()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        if self._environments is not None:
            await self._environments.close()
        self._engine.shutdown()


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
    ) -> None:
        """
        Args:
            parts: workers with the parts of these engines on other nodes, which start and stop with them;
                None if every engine is on one node.
            engines: replaces engines that are lost; None: a lost engine ends the run.
            alive_timeout_s: an engine that does nothing for so long is lost; None: nobody asks.
        """
        self.workers, self._cluster, self._parts = workers, cluster, parts
        self.engines = engines or Replacements(workers)
        self._groups = OpenGroups(workers, self.engines)
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
        if self._alive_timeout_s is not None:
            watch = self._watch(self._alive_timeout_s)
            self._watching = asyncio.create_task(self._groups.guarded(watch))

    async def stop(self) -> None:
        """End the engines' processes. This may be called after a failure."""
        self._groups.stop()
        self.engines.stop()
        if self._watching is not None:
            self._watching.cancel()
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
