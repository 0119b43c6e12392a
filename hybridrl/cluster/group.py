"""Groups of Ray actors: calls to all of them with a deadline, and named errors in place of Ray's."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from hybridrl.cluster import collectives
from hybridrl.errors import DeadlineError, HybridRLError, WorkerError

_DEATHS = (ActorDiedError, ActorUnavailableError, OutOfMemoryError)
_LOG_LINES = 12
_POLL_S = 0.05
_KEPT_CALLS = 3
_NO_WORK = ("alive", "stack_files")
"""Methods that only ask; the history of calls leaves them out."""

_RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a call may take, and the config key that says so; "" if none does."""

    seconds: float
    key: str = "cluster.step_timeout_s"


@dataclass(slots=True)
class Called:
    """A call to an actor. Times are of time.monotonic()."""

    method: str
    began: float
    ended: float | None = None
    was_answered: bool = False
    """Whether the actor answered before its caller gave up."""

    def end(self, task: "asyncio.Future[Any]") -> None:
        self.ended, self.was_answered = time.monotonic(), not task.cancelled()


@dataclass(slots=True)
class WorkerGroup:
    """Actors of the same kind; the index of an actor is its rank."""

    name: str
    """Name of the group in messages: "trainer", "engine", "reward"."""

    actors: list[Any]
    """An actor on a node that has not come is None."""

    logs: Path
    """Ray's log folder, which has the output of dead workers."""

    timeout_s: float
    """Default deadline of a call."""

    pids: dict[int, int] = field(default_factory=dict)
    """Process id of each rank; empty until `learn_pids` is called."""

    deadlines: Mapping[str, "Deadline"] = field(default_factory=dict)
    """Deadlines of methods that have their own."""

    stacks: Callable[[int, Mapping[int, Path]], Awaitable[Mapping[int, str]]] | None = None
    """Gives the Python stacks of processes on the node of a rank. Arguments: the rank, and process id -> file
    with its standard error, where Path() stands for that of an actor. None: nobody can."""

    history: dict[int, "deque[Called]"] = field(default_factory=dict)
    """The last calls to each rank, oldest first."""

    start_again: Callable[[int], Any] | None = None
    """Ends the actor of a rank and starts another one with the same arguments. None: that is not possible."""

    def __len__(self) -> int:
        return len(self.actors)

    @property
    def there(self) -> list[int]:
        """Ranks whose node has come."""
        return [rank for rank, actor in enumerate(self.actors) if actor is not None]

    async def all(self, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        """Call a method on every actor that is there with the same arguments; returns the results in order of
        rank.

        Raises:
            DeadlineError: some actors did not answer in time; the message names them.
            WorkerError: an actor died. If an actor raised an error, that error is raised instead.
        """
        refs = {rank: getattr(self.actors[rank], method).remote(*args) for rank in self.there}
        results, error = await self._settled(method, refs, timeout_s)
        if error is not None:
            raise error
        return results

    async def one(self, rank: int, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method on one actor.

        Raises:
            WorkerError: its node has not come. Otherwise as for `all`.
        """
        if self.actors[rank] is None:
            raise self._not_there(rank)
        return await self.result(
            rank, method, getattr(self.actors[rank], method).remote(*args), timeout_s=timeout_s
        )

    async def result(
        self, rank: int, method: str, ref: ray.ObjectRef, *, timeout_s: float | None = None
    ) -> Any:
        """Wait for a call to one actor that was made already."""
        results, error = await self._settled(method, {rank: ref}, timeout_s)
        if error is not None:
            raise error
        return results[0]

    async def outcomes(
        self, method: str, *args: Any, ranks: Sequence[int], timeout_s: float | None = None
    ) -> dict[int, Any]:
        """Call a method on the actors of `ranks` and wait until each has returned or failed.

        Returns:
            Rank -> result or error: WorkerError if the actor died or its node has not come, DeadlineError if
            it did not answer in time, otherwise what it raised.
        """
        there = [rank for rank in ranks if self.actors[rank] is not None]
        refs = {rank: getattr(self.actors[rank], method).remote(*args) for rank in there}
        deadline = self._deadline(method, timeout_s)
        tasks, late = await self._ended(method, refs, deadline.seconds, asyncio.ALL_COMPLETED)
        found = {rank: self._outcome(method, rank, task, late, deadline) for rank, task in tasks.items()}
        return {rank: found[rank] if rank in found else self._not_there(rank) for rank in ranks}

    async def renew(self, rank: int, *, timeout_s: float) -> None:
        """Start another actor in the place of one; calls to the old one fail.

        Raises:
            WorkerError, DeadlineError: it died, or was not there in time.
        """
        assert self.start_again is not None, "asked before"
        self.actors[rank] = self.start_again(rank)
        self.pids[rank] = await self.one(rank, "pid", timeout_s=timeout_s)

    def _not_there(self, rank: int) -> WorkerError:
        return WorkerError(f"{self.name} rank {rank} is not there: its node has not come")

    def _outcome(
        self, method: str, rank: int, task: "asyncio.Future[Any]", late: Set[Any], deadline: "Deadline"
    ) -> Any:
        if task in late:
            return self._late(method, {rank: task}, late, deadline)
        error = task.exception()
        return task.result() if error is None else self._named(method, rank, _unwrap(error))

    async def _settled(
        self, method: str, refs: Mapping[int, ray.ObjectRef], timeout_s: float | None
    ) -> tuple[list[Any], BaseException | None]:
        """Wait for calls, given by rank; returns their results, or the error to raise."""
        deadline = self._deadline(method, timeout_s)
        tasks, late = await self._ended(method, refs, deadline.seconds, asyncio.FIRST_EXCEPTION)
        done = {rank: task for rank, task in tasks.items() if task not in late}
        failed = {rank: error for rank, task in done.items() if (error := task.exception()) is not None}
        if failed:
            return [], self._cause(method, failed, done.keys() - failed, tasks.keys() - done)
        if late:
            return [], self._late(method, tasks, late, deadline)
        return [task.result() for task in tasks.values()], None

    def _deadline(self, method: str, timeout_s: float | None) -> "Deadline":
        if timeout_s is not None:
            return Deadline(timeout_s, "")
        return self.deadlines.get(method, Deadline(self.timeout_s))

    async def _ended(
        self, method: str, refs: Mapping[int, Any], timeout_s: float, until: str
    ) -> tuple[dict[int, asyncio.Future[Any]], set[asyncio.Future[Any]]]:
        """Wait for calls; returns all as tasks, and the late ones, which are cancelled."""
        if not refs:
            return {}, set()
        tasks = {rank: asyncio.ensure_future(ref) for rank, ref in refs.items()}
        for rank, task in tasks.items():
            called = Called(method, time.monotonic())
            task.add_done_callback(called.end)
            if method not in _NO_WORK:
                self.history.setdefault(rank, deque(maxlen=_KEPT_CALLS)).append(called)
        late: set[asyncio.Future[Any]] = set(tasks.values())
        try:
            done, late = await asyncio.wait(tasks.values(), timeout=timeout_s, return_when=until)
            if done and late and any(map(_broke, done)):  # by another rank, whose own error says more
                done, late = await asyncio.wait(tasks.values(), timeout=collectives.GRACE_S)
        finally:
            for task in late:  # also if nobody waits any more: an error would be told as one that nobody saw
                task.cancel()
        return tasks, late

    def _late(
        self, method: str, tasks: Mapping[int, Any], late: Set[Any], deadline: "Deadline"
    ) -> DeadlineError:
        waiting = [rank for rank, task in tasks.items() if task in late]
        return DeadlineError(
            f"{self.name} rank {waiting} did not finish {method!r} in {deadline.seconds:g} s",
            where=f"logs in {self.logs}",
            fix=f"raise {deadline.key} if the work is that long" if deadline.key else "",
        )

    def _cause(
        self,
        method: str,
        failed: Mapping[int, BaseException],
        returned: Collection[int],
        silent: Collection[int],
    ) -> BaseException:
        """The error to raise: a named error first, then any other, then the death of a worker, and last what
        ranks say that waited for others in a collective."""
        errors = {rank: _unwrap(error) for rank, error in failed.items()}
        for error in errors.values():
            if isinstance(error, HybridRLError):
                return error
        broken = {rank: error for rank, error in errors.items() if collectives.is_of_collective(error)}
        own = {rank: error for rank, error in errors.items() if rank not in broken}
        if not own:
            found = collectives.named(self.name, method, broken, returned, silent)
            found.__cause__ = next(iter(broken.values()))
            return found
        return self._named(method, *min(own.items(), key=lambda of_rank: isinstance(of_rank[1], _DEATHS)))

    def _named(self, method: str, rank: int, error: BaseException) -> BaseException:
        """The error of one worker; an error that is not a named one gets a note with the rank."""
        if isinstance(error, HybridRLError):
            return error
        if isinstance(error, _DEATHS):
            why = f": {_first_sentence(error)}" if isinstance(error, OutOfMemoryError) else ""
            return WorkerError(f"{self.name} rank {rank} died during {method!r}{why}{self._last_words(rank)}")
        error.add_note(f"in {self.name} rank {rank}, {method!r}; logs in {self.logs}")
        return error

    def _last_words(self, rank: int) -> str:
        """The last lines of a dead worker's error log; empty if Ray kept none."""
        pid = self.pids.get(rank)
        files = sorted(self.logs.glob(f"worker-*-{pid}.err")) if pid else []
        text = files[-1].read_text(errors="replace") if files else ""
        lines = [line for line in text.splitlines() if not line.startswith(_RAY_MARKS)][-_LOG_LINES:]
        return "".join(f"\n    {line}" for line in lines)

    async def learn_pids(self, *, timeout_s: float) -> None:
        """Ask every actor for its process id, with its method `pid`."""
        self.pids = dict(zip(self.there, await self.all("pid", timeout_s=timeout_s), strict=True))

    def kill(self) -> None:
        """End the processes at the end of a run; the actors cannot be called afterwards."""
        for rank in self.there:
            ray.kill(self.actors[rank])


def _first_sentence(error: BaseException) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def end(actor: Any, pid: int | None) -> None:
    """End an actor's process, if it still runs.

    Args:
        pid: its process id, if it is on this machine: a process that does nothing cannot end itself.
    """
    ray.kill(actor)
    if pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if any(word.startswith("ray::") for word in process.cmdline()):  # the id may be another's by now
                process.kill()


def wait_until_gone(pids: Collection[int], timeout_s: float) -> None:
    """Wait until processes of this machine have ended, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _runs(pid: int) -> bool:
    """Whether a process has not ended; one that nobody waited for has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _broke(task: "asyncio.Future[Any]") -> bool:
    error = task.exception()
    return error is not None and collectives.is_of_collective(_unwrap(error))


def _unwrap(error: BaseException) -> BaseException:
    """The worker's own error, without Ray's wrapper.

    The wrapper becomes its cause, because the wrapper's text has the worker's traceback.
    """
    if not isinstance(error, RayTaskError) or error.cause is None:
        return error
    error.cause.__cause__ = error
    return error.cause
