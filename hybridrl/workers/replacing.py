"""Which engines of a run serve, and how others take the place of those that do not, or join them.

    serving -- lose() --> starting (a new process) -- up --> fresh (no weights) -- serve() --> serving
    absent -- its node comes --> starting; starting, and its node has gone --> absent

An engine is lost if its process or its worker ended, if it does not answer within a deadline, or if it holds
or answers with other weights than it should. Errors of another kind end the run, as do all before the first
swap. Groups of a lost engine are asked again (open_groups.py), and a swap gives the new one its weights
(sync.py): at once if the trainer has the weights that the other engines serve, otherwise with the next swap.

An engine whose node is not there when the run begins is absent, and its node is awaited from the first swap
on; so is an engine of such a node that has gone again. Nobody counts on it: a run whose other engines are all
lost ends.

Waits: a replacement waits for the old process to end, for the new one to start, and for its weights. An
absent engine waits for its node. one_serves() waits for an engine that serves.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError

from hybridrl.cluster.group import WorkerGroup
from hybridrl.cluster.late_nodes import LateNode
from hybridrl.errors import DeadlineError, EngineLostError, HybridRLError, WorkerError
from hybridrl.faults import Fault
from hybridrl.wording import counted

LOSSES = (EngineLostError, WorkerError, DeadlineError)
"""Errors by which an engine is lost."""

_END_S = 20.0


class Replacements:
    """The engines of a run by rank. All calls come from one event loop."""

    def __init__(
        self,
        workers: WorkerGroup,
        *,
        most: int = 0,
        start_timeout_s: float = 600.0,
        say: Callable[[str], None] = lambda text: None,
        faults: Sequence[Fault] = (),
        nodes: Mapping[int, LateNode] | None = None,
    ) -> None:
        """
        Args:
            most: how often an engine is started again between two swaps; 0: a lost engine ends the run.
            say: tells the user that an engine was lost, serves again, or joins.
            faults: those that engines are to suffer. A new one suffers those of later steps.
            nodes: engine -> its node, if that may come later.
        """
        self._workers, self._most, self._start_timeout_s = workers, most, start_timeout_s
        self._say, self._faults, self._nodes = say, faults, dict(nodes or {})
        self._absent = {engine for engine, node in self._nodes.items() if not node.is_there()}
        self.serving = set(range(len(workers))) - self._absent
        self.fresh: set[int] = set()
        """Engines that are up and have no weights."""

        self.starts: Counter[int] = Counter()
        """How often each engine was replaced. A call knows by this whether its error is the present one's."""

        self.replaced = 0
        """Engines that were replaced since somebody set this to 0."""

        self.give_weights: Callable[[int], Awaitable[None]] | None = None
        """Gives a fresh engine the weights that others serve, or leaves that to the next swap."""

        self.on_lost: list[Callable[[int], None]] = []
        self.on_serving: list[Callable[[int], None]] = []
        self.on_failure: list[Callable[[BaseException], None]] = []
        """Called when no engine is left and none will come."""

        self.may_start = asyncio.Event()
        """Whether a new engine may take its memory now."""
        self.may_start.set()

        self.step = 0
        """The latest step whose answers engines were asked for. Faults of it and earlier ones do not happen
        again."""

        self._tries: Counter[int] = Counter()
        """How often each engine was started again since the last swap."""

        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._awaited: dict[int, asyncio.Task[None]] = {}
        """Tasks that wait for the nodes of absent engines."""

        self._unfit: dict[int, str] = {}
        """What was last said of the node of an absent engine that cannot be used."""

        self._joining: set[asyncio.Task[None]] = set()
        """Tasks that give a fresh engine its weights."""

        self._lost_at: dict[int, float] = {}
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def present(self) -> list[int]:
        """Engines that take part in a swap."""
        return sorted(self.serving | self.fresh)

    def lose(self, engine: int, error: BaseException, *, start: int | None = None) -> None:
        """An engine failed: replace it. An engine that is being replaced already is not lost again.

        Args:
            start: `starts` of the engine when the call was made that failed; None: just now.

        Raises: `error`, if an engine that fails so is not replaced, or no engine is left and none will come.
        """
        if not isinstance(error, LOSSES) or not self._most or self.give_weights is None:
            raise error
        if (engine not in self.serving and engine not in self.fresh) or start not in (
            None,
            self.starts[engine],
        ):
            return
        self.starts[engine] += 1
        self.serving.discard(engine)
        self.fresh.discard(engine)
        self._lost_at[engine] = time.monotonic()
        self._say(f"engine {engine} is lost, {self._takes_over(engine)}: {_first_line(error)}")
        self._begin(engine, error)
        for tell in self.on_lost:
            tell(engine)
        if self._failure is not None:
            raise self._failure

    def serve(self, engine: int) -> None:
        """An engine has committed a swap."""
        if engine in self.serving:
            return
        self.fresh.discard(engine)
        self.serving.add(engine)
        if engine in self._lost_at:
            self.replaced += 1
            took_s = time.monotonic() - self._lost_at.pop(engine)
            self._say(f"engine {engine} serves again, {took_s:.1f} s after it was lost")
        else:
            self._say(
                f"engine {engine} joins: {counted(len(self.serving), 'engine serves', 'engines serve')}"
            )
        self._tell()
        for tell in self.on_serving:
            tell(engine)

    def swapped(self, step: int) -> None:
        """A swap is over: engines that could not be started are tried again, and nodes that are absent are
        awaited.

        Args:
            step: the step that trains the new weights.
        """
        self.step = max(self.step, step)
        self._tries.clear()
        for engine in range(len(self._workers)):
            if engine in self._absent:
                self._await(engine)
            elif engine not in self._tasks and engine not in self.serving and engine not in self.fresh:
                self._begin(engine, None)

    async def one_serves(self) -> None:
        """Wait until an engine serves.

        Raises: why the last one was lost, if none will come.
        """
        await self._until(lambda: bool(self.serving))

    async def one_is_fresh(self) -> int:
        """Wait for an engine that is up and has no weights; returns it.

        Raises: as for one_serves.
        """
        await self._until(lambda: bool(self.fresh))
        return min(self.fresh)

    async def begin_again(self) -> None:
        """The run goes back to its checkpoint. Nobody who waited for an engine does so any more; engines that
        start go on starting, and get their weights with the next swap.

        Raises: why the last engine was lost, if none is left and none starts.
        """
        if self._failure is not None and not (self.present or self._tasks):
            raise self._failure
        for told in (self.on_lost, self.on_serving, self.on_failure):
            told.clear()
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)
        self._failure = None
        if self.give_weights is not None:
            self.give_weights = _with_the_next_swap

    def stop(self) -> None:
        """Give up all replacements, at the end of a run."""
        for task in (*self._tasks.values(), *self._joining, *self._awaited.values()):
            task.cancel()

    def _takes_over(self, engine: int) -> str:
        begins = ["another one starts"] if self._tries[engine] < self._most else []
        others = counted(len(self.serving), "other engine goes on", "other engines go on")
        return ", ".join([*begins, *([others] if self.serving else [])]) or "it was the last one"

    def _begin(self, engine: int, error: BaseException | None) -> None:
        """Start an engine again, unless it was started too often already or its node has gone."""
        if engine in self._nodes and not self._nodes[engine].is_there():
            self._absent.add(engine)
            self._say(f"the node of engine {engine} has gone; it is awaited")
            self._await(engine)
            if error is not None and not (self.serving or self.fresh or self._tasks):
                self._end_run(error)
        elif self._tries[engine] < self._most:
            self._tries[engine] += 1
            self._tasks[engine] = asyncio.create_task(self._replace(engine))
        elif error is not None:
            self._give_up(engine, error)

    def _await(self, engine: int) -> None:
        if engine not in self._awaited:
            self._awaited[engine] = asyncio.create_task(self._await_node(engine))

    async def _await_node(self, engine: int) -> None:
        """Wait for the node of an absent engine, and start the engine there."""
        try:
            await self._nodes[engine].come()
        except (HybridRLError, RayError) as error:  # it went away again, or is unfit; it is awaited again
            text = f"the node of engine {engine} came and cannot be used: {_first_line(error)}"
            if self._unfit.get(engine) != text:
                self._say(text)
            self._unfit[engine] = text
            return
        finally:
            del self._awaited[engine]
        self._absent.discard(engine)
        self._say(f"the node of engine {engine} has come, the engine starts")
        self._begin(engine, None)

    def _give_up(self, engine: int, error: BaseException) -> None:
        if self.serving or self.fresh or self._tasks.keys() - {engine}:
            self._say(
                f"engine {engine} failed again after {counted(self._most, 'start')}; it is tried again after "
                f"the next swap: {_first_line(error)}"
            )
            return
        self._end_run(error)

    def _end_run(self, error: BaseException) -> None:
        self._failure = error
        self._tell()
        for tell in self.on_failure:
            tell(error)

    async def _replace(self, engine: int) -> None:
        """Start an engine in the place of one that was lost, and give it weights."""
        try:
            await self.may_start.wait()
            await self._end(engine)
            await self._workers.renew(engine, timeout_s=self._start_timeout_s)
            if faults := [f for f in self._faults if f.rank == engine and f.step > self.step]:
                await self._workers.one(engine, "plant", faults)
            await self._workers.one(engine, "start", timeout_s=self._start_timeout_s)
        except Exception as error:  # a start that fails is tried again
            del self._tasks[engine]
            self._begin(engine, error)
            return
        joining = self._tasks.pop(engine)
        self.fresh.add(engine)
        self._tell()
        assert self.give_weights is not None, "nothing is replaced before"
        self._joining.add(joining)
        try:
            await self.give_weights(engine)
        except Exception as error:  # handed to who waits for an engine or for groups
            self._end_run(error)
        finally:
            self._joining.discard(joining)

    async def _end(self, engine: int) -> None:
        """End what is left of a lost engine; its worker may be gone, or not answer."""
        with contextlib.suppress(HybridRLError):
            await self._workers.one(engine, "end", timeout_s=_END_S)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, ready: Callable[[], Any]) -> None:
        while not ready():
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()


async def _with_the_next_swap(engine: int) -> None:
    """Leave the weights of a fresh engine to the next swap."""


def _first_line(error: BaseException) -> str:
    return (error.what if isinstance(error, HybridRLError) else str(error)).partition("\n")[0]
