"""Engines, trainer and weight swaps that take the time that they say, for the real training loop.

A request decodes one token in a fixed time, whatever else runs beside it, as long as an engine has room: it
runs a number of requests at once, and further ones wait in their order. Work goes to the engine with the
fewest tokens to come, as if lengths were known on average.
"""

import asyncio
import contextlib
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hybridrl import types
from hybridrl.batch import Batch, Minibatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig, Config
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.roles import Roles
from hybridrl.types import Group, GroupTask, Prompt, StepReport, SwapReport, Trajectory, Usage

Swap = Literal["drain_all", "drain", "in_flight"]
"""drain_all: a swap waits for every request that was accepted, as when a step is one call of the engines;
drain: for those that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of answers: log-normal, by their mean, their 99th percentile and the largest."""

    mean: float
    p99: float
    largest: int

    def draw(self, random_: random.Random) -> int:
        """
        Raises:
            ValueError: no log-normal distribution has this mean and percentile.
        """
        spread = 2.3263 - math.sqrt(2.3263**2 - 2 * math.log(self.p99 / self.mean))
        middle = math.log(self.mean) - spread**2 / 2
        return max(1, min(self.largest, round(random_.lognormvariate(middle, spread))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    engines: int
    running: int
    """Requests that an engine runs at once."""

    token_s: float
    """Time of a decoding step."""

    prefill_tokens_s: float
    """Tokens a second that an engine computes again after a swap in flight."""

    train_s: float
    swap_s: float


@dataclass
class _Episode:
    index: int
    length: int
    ends_at: float = 0.0
    """Time of its engine at which it ends."""


@dataclass
class _Engine:
    """One engine. Its time stands still while it is paused."""

    hardware: Hardware
    now: float = 0.0
    since: float | None = None
    """Time on the clock since when its time passes; None: it is paused."""

    running: list[tuple[float, int, _Episode]] = field(default_factory=list)
    waiting: deque[_Episode] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    admits: bool = True
    work: int = 0
    """Tokens of all its episodes."""

    generating_s: float = 0.0
    paused_s: float = 0.0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def pass_time(self, clock: float) -> None:
        """Let its time pass up to `clock`, and account for it."""
        assert self.since is not None
        passed = clock - self.since
        self.now, self.since = self.now + passed, clock
        self.generating_s += passed if self.running else 0.0

    def admit(self) -> None:
        while self.admits and self.waiting and len(self.running) < self.hardware.running:
            episode = self.waiting.popleft()
            episode.ends_at = self.now + episode.length * self.hardware.token_s
            heapq.heappush(self.running, (episode.ends_at, next(self.numbers), episode))

    def context(self) -> float:
        """Tokens in its key-value cache."""
        token_s = self.hardware.token_s
        return sum(e.length - max(0.0, e.ends_at - self.now) / token_s for _, _, e in self.running)


class SimulatedRun:
    """Engine, trainer, sync, reward and prompts of a run on a fake clock."""

    version = 0

    def __init__(self, cfg: Config, hardware: Hardware, lengths: Lengths, swap: Swap, seed: int = 0) -> None:
        self._cfg, self._hardware, self._lengths, self._swap, self._seed = cfg, hardware, lengths, swap, seed
        self._served = 0
        self._engines = [_Engine(hardware) for _ in range(hardware.engines)]
        self._tasks: dict[int, GroupTask] = {}
        self._open: dict[int, tuple[int, int]] = {}
        """Episodes to come and version at the start, by group."""

        self._ended_tokens: Counter[int] = Counter()
        """Tokens of the episodes that have ended, by open group."""

        self._lengths_of: dict[int, list[int]] = {}
        self._done: asyncio.Queue[Group] = asyncio.Queue()
        self._idle = asyncio.Condition()
        self._position = self._recomputed = self._sampled = self._aborted = 0
        self._since = 0.0
        self.metrics: list[dict[str, float]] = []
        self.step_ends: list[float] = []
        self.lags: list[int] = []
        self.trained_lengths: list[int] = []
        self._started: dict[int, int] = {}
        """Tokens of each group that was started."""

    def roles(self) -> Roles:
        one: Any = self
        return Roles(
            prompts=one,
            engine=one,
            reward=one,
            credit=load_credit(self._cfg.algorithm),
            pack_minibatches=lambda batch: [Minibatch(0, ((tuple(range(len(batch))),),), 1, 1)],
            trainer=one,
            sync=one,
            evaluator=None,
            observe=Notes(self),
            stop_requested=lambda: False,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The engines run inside this context."""
        clock = asyncio.get_running_loop().time
        for engine in self._engines:
            engine.since = clock()
        tasks = [asyncio.create_task(self._run(engine)) for engine in self._engines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def mean_started(self) -> float:
        """Mean length of all answers that were started."""
        return sum(self._started.values()) / (len(self._started) * self._cfg.algorithm.samples_per_prompt)

    # prompts

    @property
    def position(self) -> int:
        return self._position

    def take(self, count: int) -> list[Prompt]:
        first, self._position = self._position, self._position + count
        return self.at(range(first, self._position))

    def at(self, indices: Sequence[int]) -> list[Prompt]:
        return [Prompt(f"train/{index}", (1,), {}) for index in indices]

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    # engine

    async def submit(self, tasks: Sequence[GroupTask]) -> None:
        least = [(engine.work, number) for number, engine in enumerate(self._engines)]
        heapq.heapify(least)
        for task in tasks:
            draws = random.Random(f"{self._seed} {task.index}")
            lengths = [self._lengths.draw(draws) for _ in range(task.sampling.num_samples)]
            self._tasks[task.index], self._lengths_of[task.index] = task, lengths
            self._open[task.index] = (len(lengths), self._served)
            self._started[task.index] = sum(lengths)
            engine = self._engines[least[0][1]]
            engine.waiting.extend(_Episode(task.index, length) for length in lengths)
            engine.work += sum(lengths)
            heapq.heapreplace(least, (engine.work, least[0][1]))
            engine.changed.set()

    async def completed(self) -> list[Group]:
        groups = [await self._done.get()]
        while not self._done.empty():
            groups.append(self._done.get_nowait())
        return groups

    async def cancel(self, indices: Sequence[int]) -> None:
        gone = set(indices)
        for engine in self._engines:
            if engine.since is not None:
                engine.pass_time(asyncio.get_running_loop().time())
            left = [entry for entry in engine.running if entry[2].index not in gone]
            for _, _, episode in (entry for entry in engine.running if entry[2].index in gone):
                self._lose(engine, episode, max(0.0, episode.ends_at - engine.now) / engine.hardware.token_s)
            for episode in (waiting for waiting in engine.waiting if waiting.index in gone):
                self._lose(engine, episode, episode.length)
            engine.running = left
            heapq.heapify(engine.running)
            engine.waiting = deque(e for e in engine.waiting if e.index not in gone)
            engine.changed.set()
        for index in gone:
            self._open.pop(index, None)
            self._aborted += self._ended_tokens.pop(index, 0)

    def _lose(self, engine: _Engine, episode: _Episode, unsampled: float) -> None:
        tokens = episode.length - round(unsampled)
        engine.work -= episode.length
        self._sampled, self._aborted = self._sampled + tokens, self._aborted + tokens

    async def sleep(self) -> None:
        pass

    async def usage(self) -> Usage:
        clock = asyncio.get_running_loop().time()
        for engine in self._engines:
            if engine.since is not None:
                engine.pass_time(clock)
        generating = sum(engine.generating_s for engine in self._engines)
        paused = sum(engine.paused_s for engine in self._engines)
        whole = (clock - self._since) * len(self._engines)
        used = Usage(
            generating_s=generating,
            paused_s=paused,
            idle_s=max(0.0, whole - generating - paused),
            sampled_tokens=self._sampled,
            aborted_tokens=self._aborted,
            recomputed_tokens=self._recomputed,
        )
        self._since, self._sampled, self._aborted, self._recomputed = clock, 0, 0, 0
        for engine in self._engines:
            engine.generating_s = engine.paused_s = 0.0
        return used

    async def _run(self, engine: _Engine) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            if engine.since is not None:
                engine.pass_time(clock())
                self._end_episodes(engine)
                engine.admit()
            async with self._idle:
                self._idle.notify_all()
            engine.changed.clear()
            until = engine.running[0][0] - engine.now if engine.since is not None and engine.running else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(engine.changed.wait(), until)

    def _end_episodes(self, engine: _Engine) -> None:
        while engine.running and engine.running[0][0] <= engine.now + 1e-9:
            _, _, episode = heapq.heappop(engine.running)
            engine.work -= episode.length
            self._sampled += episode.length
            self._ended_tokens[episode.index] += episode.length
            left, version = self._open[episode.index]
            self._open[episode.index] = (left - 1, version)
            if left == 1:
                self._end_group(episode.index, version)

    def _end_group(self, index: int, version: int) -> None:
        del self._open[index], self._ended_tokens[index]
        members = [
            Trajectory(row, 1, length, length, "stop", version)
            for row, length in enumerate(self._lengths_of.pop(index))
        ]
        self._done.put_nowait(Group(self._tasks.pop(index).prompt, members, _NO_TOKENS, index=index))

    # reward, trainer, sync

    async def score(self, groups: Sequence[Group], *, keep_text: Collection[Trajectory] = ()) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i % 2)

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        self.lags += [batch.step - 1 - t.version for t in batch.trajectories]
        self.trained_lengths += batch.length_N.tolist()
        return {}

    async def step(self, index: int) -> StepReport:
        await asyncio.sleep(self._hardware.train_s)
        self.version += 1
        return StepReport(self.version, 0.0, 0.0, 1e-6, {})

    async def save(self, step: int, progress: Mapping[str, Any], opened: Any) -> None:
        pass

    async def finish_saving(self) -> None:
        pass

    async def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[types.InspectedTrajectory]:
        return []

    async def push(self, version: int) -> SwapReport:
        clock = asyncio.get_running_loop().time
        if self._swap == "in_flight":
            for engine in self._engines:
                engine.pass_time(clock())
            recomputed = [engine.context() for engine in self._engines]
        else:
            await self._drain()
            recomputed = [0.0] * len(self._engines)
        start = clock()
        for engine in self._engines:
            engine.pass_time(start)
            engine.since = None
            engine.changed.set()
        await asyncio.sleep(self._hardware.swap_s)
        self._served = version
        for engine, tokens in zip(self._engines, recomputed, strict=True):
            pause = self._hardware.swap_s + tokens / self._hardware.prefill_tokens_s
            self._resume_later(engine, start, pause)
        self._recomputed += round(sum(recomputed))
        return SwapReport(version, clock() - start, 1, 1, 0, True)

    async def _drain(self) -> None:
        """Wait until nothing runs, in any engine."""
        for engine in self._engines:
            engine.admits = self._swap == "drain_all"
        async with self._idle:
            await self._idle.wait_for(lambda: not any(engine.running for engine in self._engines))

    def _resume_later(self, engine: _Engine, start: float, pause: float) -> None:
        loop = asyncio.get_running_loop()

        def resume() -> None:
            engine.paused_s += (loop.time() - start) if engine.running or engine.waiting else 0.0
            engine.since, engine.admits = loop.time(), True
            engine.changed.set()

        loop.call_at(start + pause, resume)


_NO_TOKENS = TokenBlock.from_answers([(1,)], [(1,)], [(0.0,)], 0)


@dataclass
class Notes:
    """Observer of a simulated run."""

    run: SimulatedRun

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        yield

    def step(
        self, step: int, batch: Batch, reports: Any, swap: Any, metrics: Any, *, minibatches: Any
    ) -> None:
        self.run.metrics.append(dict(metrics))
        self.run.step_ends.append(asyncio.get_running_loop().time())

    def rollouts(self, batch: Batch, found: Any, why: Any) -> None:
        pass

    def warn(self, about: str, text: str) -> None:
        raise AssertionError(text)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


def config(prompts: int, samples: int, steps: int, **batch: Any) -> Config:
    """A config of the loop alone."""
    return Config.model_validate(
        {
            "model": "m",
            "data": {"train": "d.jsonl"},
            "reward": "exact_match",
            "run": {"name": "simulated", "steps": steps, "evaluate_every": 0, "save_every": 0},
            "batch": {"prompts_per_step": prompts, **batch},
            "algorithm": AlgorithmConfig(samples_per_prompt=samples).model_dump(by_alias=True),
        }
    )
