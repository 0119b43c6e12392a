"""One engine per actor. Groups that train are submitted to an episode runner beside each engine
(rollout/episodes.py). A swap lets their running requests end, or pauses them, and holds back the others."""

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Literal

import ray

from hybridrl.batch import TokenBlock
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
from hybridrl.types import PolicyVersion, Prompt, Sampling, Trajectory, Usage
from hybridrl.workers.pictures import shown, shown_in
from hybridrl.workers.planted import around_engine
from hybridrl.workers.turns import TurnSetup

SwapMode = Literal["drain", "in_flight", "in_flight_keep_cache"]
"""Values of rollout.swap."""

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
        self._engine, self._player = around_engine(self._kind.open(self._setup), self._faults), None
        if self._turns is not None:
            self._environments, self._player = await self._turns.open(self._pictures)
        self._runner = self._new_runner()

    async def begin_again(self) -> None:
        """End all episodes, and serve after the next swap, which may have any version: the run goes back to
        its checkpoint. Engine and environments stay."""
        await self._runner.end()
        self._engine.session.forget()
        self._runner = self._new_runner()

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

    def _new_runner(self) -> EpisodeRunner:
        return EpisodeRunner(self._engine, most_requests=self._most_requests, player=self._player)

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
