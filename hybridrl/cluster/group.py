"""Groups of Ray actors: call them all, wait with a deadline, turn what Ray raises into our named errors."""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from hybridrl.errors import DeadlineError, HybridRLError, WorkerError

_LOG_LINES = 12
_RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")


@dataclass(slots=True)
class WorkerGroup:
    """Actors that do the same job; index = rank."""

    name: str
    """For messages: "trainer", "engine", "reward"."""

    actors: list[Any]
    logs: Path
    """Ray's log folder, where a dead worker left its last words."""

    pids: dict[int, int] = field(default_factory=dict)
    """Process of each rank, once known."""

    def __len__(self) -> int:
        return len(self.actors)

    async def all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call a method on every actor with the same arguments; the results in order of rank.

        Raises:
            DeadlineError: some did not answer in time; names them.
            WorkerError: one died. Otherwise what the first failing one raised.
        """
        return await self.wait(
            method, [getattr(a, method).remote(*args) for a in self.actors], timeout_s=timeout_s
        )

    async def one(self, rank: int, method: str, *args: Any, timeout_s: float) -> Any:
        """Call a method on one actor."""
        return (
            await self._wait(method, [getattr(self.actors[rank], method).remote(*args)], [rank], timeout_s)
        )[0]

    async def wait(self, method: str, refs: Sequence[ray.ObjectRef], *, timeout_s: float) -> list[Any]:
        """Wait for calls that are under way, one per rank."""
        return await self._wait(method, refs, list(range(len(refs))), timeout_s)

    async def _wait(
        self, method: str, refs: Sequence[ray.ObjectRef], ranks: list[int], timeout_s: float
    ) -> list[Any]:
        tasks = [asyncio.ensure_future(_result(ref)) for ref in refs]
        done, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in late:
            task.cancel()
        failed = {
            rank: error
            for rank, task in zip(ranks, tasks, strict=True)
            if task in done and (error := task.exception()) is not None
        }
        if failed:
            raise self._cause(method, failed)
        if late:
            waiting = [rank for rank, task in zip(ranks, tasks, strict=True) if task in late]
            raise DeadlineError(
                f"{self.name} rank {waiting} did not finish {method!r} in {timeout_s:g} s",
                where=f"logs in {self.logs}",
                fix="raise cluster.step_timeout_s if the work is that long",
            )
        return [task.result() for task in tasks]

    def _cause(self, method: str, failed: dict[int, BaseException]) -> BaseException:
        """The error to show: one of ours before a stranger's, a stranger's before the death of a worker."""
        errors = {rank: _unwrap(error) for rank, error in failed.items()}
        for error in errors.values():
            if isinstance(error, HybridRLError):
                return error
        rank, error = next(iter(errors.items()))
        if isinstance(error, ActorDiedError | ActorUnavailableError):
            return WorkerError(f"{self.name} rank {rank} died during {method!r}{self._last_words(rank)}")
        error.add_note(f"in {self.name} rank {rank}, {method!r}; logs in {self.logs}")
        return error

    def _last_words(self, rank: int) -> str:
        """The end of the dead worker's error log, if Ray kept one."""
        pid = self.pids.get(rank)
        files = sorted(self.logs.glob(f"worker-*-{pid}.err")) if pid else []
        text = files[-1].read_text(errors="replace") if files else ""
        lines = [line for line in text.splitlines() if not line.startswith(_RAY_MARKS)][-_LOG_LINES:]
        return "".join(f"\n    {line}" for line in lines)

    async def learn_pids(self, *, timeout_s: float) -> None:
        """Ask every actor for its process id; a worker offers it as method `pid`."""
        self.pids = dict(enumerate(await self.all("pid", timeout_s=timeout_s)))

    def kill(self) -> None:
        """End the processes; for the end of a run, after which nobody asks them anything."""
        for actor in self.actors:
            ray.kill(actor)


async def _result(ref: Any) -> Any:
    return await ref if inspect.isawaitable(ref) else ref


def _unwrap(error: BaseException) -> BaseException:
    """What the worker raised, instead of Ray's wrapping of it."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
