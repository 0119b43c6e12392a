"""Opens episodes of one environment in processes that hold several of them each.

Waits: `reset` waits, without a deadline, for a place in a process, and for one of the processes that may
start at the same time. All else waits as long as the config allows.
"""

import asyncio
import itertools
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hybridrl.config.environment import EnvironmentConfig, OneEnvironment
from hybridrl.environments.base import (
    EnvironmentFailedError,
    EnvironmentUsage,
    Observation,
    Phase,
    ToolSchema,
    Turn,
)
from hybridrl.environments.observations import UnreadableObservation, read_observation, turn_to_plain
from hybridrl.environments.process import EnvironmentProcess

Result = TypeVar("Result")


class Places:
    """How many processes may live here, and how many may start at the same time; several pools share them."""

    def __init__(self, most: int | None, *, sharers: int = 1) -> None:
        """
        Args:
            most: most processes of the node; None: four for each CPU.
            sharers: how many of these share them.
        """
        cpus = os.cpu_count() or 1
        self.most = max((most or 4 * cpus) // sharers, 1)
        self.num_processes = 0
        self.starting = asyncio.Semaphore(cpus)
        self.freed = asyncio.Condition()

    async def changed(self) -> None:
        """Wake those that wait for a place."""
        async with self.freed:
            self.freed.notify_all()


class EnvironmentPool:
    """The processes of one environment. All calls come from one event loop."""

    def __init__(
        self, name: str, own: OneEnvironment, config: EnvironmentConfig, places: Places, *, where: str
    ) -> None:
        """
        Args:
            name: in metrics and errors.
            own: this environment of the config.
            where: its place in the config.
        """
        self.name, self.own, self.schemas = name, own, tuple[ToolSchema, ...]()
        self.text_tools: tuple[str, ...] = ()
        self._config, self._places = config, places
        fields = own.model_dump(mode="json", include=set(OneEnvironment.model_fields))
        self._order = {
            "environment": fields | own.options,
            "timeout_s": 0.8 * config.step_timeout_s,
            "where": where,
        }
        self._processes: list[EnvironmentProcess] = []
        self._numbers = itertools.count()
        self._waiting = self._starting = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._clear()

    async def start(self) -> None:
        """Start the first process, and read from it which tools there are.

        Raises:
            HybridRLError: the environment or a tool cannot be loaded.
        """
        self._processes.append(await self._started())
        self.schemas, self.text_tools = self._processes[0].schemas, self._processes[0].text_tools

    @property
    def max_turns(self) -> int:
        """Answers of the policy in an episode."""
        return self.own.max_turns

    def open(self, row: Mapping[str, Any]) -> "PooledEpisode":
        self._episodes += 1
        return PooledEpisode(self, row, next(self._numbers))

    def usage(self) -> EnvironmentUsage:
        """What happened since the last call."""
        found = EnvironmentUsage(
            episodes=self._episodes,
            failures=dict(self._failures),
            first_failure=self._first_failure,
            closed=self._closed,
            processes=len(self._processes),
            seconds=dict(self._seconds),
        )
        self._clear()
        return found

    async def close(self) -> None:
        """End all processes, after episodes that are being closed. A second call does nothing."""
        await self.idle()
        processes, self._processes = self._processes, []
        await asyncio.gather(*(process.end() for process in processes))
        self._places.num_processes -= len(processes)
        await self._places.changed()

    async def idle(self) -> None:
        """Wait until every episode that is being closed is."""
        await asyncio.gather(*self._closing)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def place(self) -> EnvironmentProcess:
        """A process with a place for an episode, which is taken.

        Raises:
            EnvironmentFailedError: it could not be started.
        """
        self._waiting += 1
        try:
            while True:
                self._drop_failed()
                free = [p for p in self._processes if p.num_episodes < self._config.episodes_per_process]
                if free:
                    best = max(free, key=lambda process: process.num_episodes)
                elif self._may_start():
                    best = await self._started()
                    self._processes.append(best)
                else:
                    async with self._places.freed:
                        await self._places.freed.wait()
                    continue
                best.num_episodes += 1
                return best
        finally:
            self._waiting -= 1

    async def leave(self, process: EnvironmentProcess) -> None:
        process.num_episodes -= 1
        await self._places.changed()

    async def timed(self, phase: Phase, answer: Awaitable[Result]) -> Result:
        """What is awaited; its seconds and its failure are counted."""
        began = time.monotonic()
        try:
            return await answer
        except EnvironmentFailedError as error:
            self.count_failure(error)
            raise
        finally:
            self._seconds[phase] += time.monotonic() - began

    def count_failure(self, error: EnvironmentFailedError) -> None:
        """Count a failure, and write its cause to stderr, which is the log of the process."""
        self._failures[f"{error.phase}/{error.reason}"] += 1
        if error.reason != "neighbour":
            print(error, file=sys.stderr, flush=True)
            self._first_failure = self._first_failure or str(error)

    def close_soon(self, process: EnvironmentProcess, number: int) -> None:
        """End an episode, while its runner goes on."""
        task = asyncio.create_task(self._close_episode(process, number))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_episode(self, process: EnvironmentProcess, number: int) -> None:
        try:
            await self.timed("close", process.ask("close", number, self._config.close_timeout_s))
            self._closed += 1
        except EnvironmentFailedError:
            pass  # it is counted
        await self.leave(process)

    def _may_start(self) -> bool:
        """Whether more episodes wait than starting processes will hold, and one more may start."""
        coming = self._starting * self._config.episodes_per_process
        living = len(self._processes) + self._starting
        return self._waiting > coming and (self._places.num_processes < self._places.most or not living)

    async def _started(self) -> EnvironmentProcess:
        self._places.num_processes += 1
        self._starting += 1
        try:
            async with self._places.starting:
                process, config = EnvironmentProcess(self.name), self._config
                started = process.start(self._order, config.variables, timeout_s=config.start_timeout_s)
                await self.timed("start", started)
                return process
        except BaseException:
            self._places.num_processes -= 1
            raise
        finally:
            self._starting -= 1
            await self._places.changed()

    def _drop_failed(self) -> None:
        alive = [process for process in self._processes if process.failure is None]
        self._places.num_processes -= len(self._processes) - len(alive)
        self._processes = alive

    def _clear(self) -> None:
        self._episodes = self._closed = 0
        self._failures, self._seconds = Counter[str](), defaultdict[str, float](float)
        self._first_failure = ""


class PooledEpisode:
    """The environment of one episode."""

    def __init__(self, pool: EnvironmentPool, row: Mapping[str, Any], number: int) -> None:
        self._pool, self._row, self._number = pool, row, number
        self._process: EnvironmentProcess | None = None
        self._closed = False

    async def reset(self, seed: int) -> Observation:
        self._process = await self._pool.place()
        timeout_s = self._pool._config.reset_timeout_s
        seen = await self._ask("reset", timeout_s, row=dict(self._row), seed=seed)
        if seen.reward or seen.rewards:
            raise self._lied("reset", "returned a reward, and no turn was taken")
        return seen

    async def step(self, turn: Turn) -> Observation:
        return await self._ask("step", self._pool._config.step_timeout_s, turn=turn_to_plain(turn))

    async def close(self) -> None:
        if self._process is not None and not self._closed:
            self._closed = True
            self._pool.close_soon(self._process, self._number)

    async def _ask(self, do: Phase, timeout_s: float, **values: Any) -> Observation:
        assert self._process is not None and not self._closed, "reset comes first, close last"
        plain = await self._pool.timed(do, self._process.ask(do, self._number, timeout_s, **values))
        try:
            return read_observation(plain)
        except UnreadableObservation as error:
            raise self._lied(do, str(error)) from error

    def _lied(self, do: Phase, what: str) -> EnvironmentFailedError:
        error = EnvironmentFailedError(
            f"environment {self._pool.name}: {do} {what}", phase=do, reason="invalid"
        )
        self._pool.count_failure(error)
        return error


def total(usages: Sequence[EnvironmentUsage]) -> EnvironmentUsage:
    """The sum over pools."""
    failures, seconds = Counter[str](), defaultdict[str, float](float)
    for usage in usages:
        failures.update(usage.failures)
        for phase, spent_s in usage.seconds.items():
            seconds[phase] += spent_s
    return replace(
        EnvironmentUsage(),
        episodes=sum(usage.episodes for usage in usages),
        failures=dict(failures),
        first_failure=next((usage.first_failure for usage in usages if usage.first_failure), ""),
        closed=sum(usage.closed for usage in usages),
        processes=sum(usage.processes for usage in usages),
        seconds=dict(seconds),
    )
