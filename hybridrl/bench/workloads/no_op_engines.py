"""Real Ray actors with engines that answer at once, and a training loop whose trainer does nothing.

What is left is the work of the driver.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from hybridrl.batch import Batch, Minibatch
from hybridrl.bench.workloads.simulated import config
from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.rollout import EngineParallel
from hybridrl.controller.advantage import CreditAssignment, load_credit
from hybridrl.controller.loop import run
from hybridrl.controller.roles import Roles
from hybridrl.data.packing import pack_minibatches
from hybridrl.observe.metrics import Limits, balance_metrics, step_metrics
from hybridrl.rollout.base import Answer, EngineSetup, Request
from hybridrl.types import Group, InspectedTrajectory, Prompt, StepReport, SwapReport, Trajectory
from hybridrl.workers.engine_worker import RolloutWorker
from hybridrl.workers.rollout import RayRollout

_LONGEST = 32


class NoOpKind:
    """EngineKind, as far as a worker uses it."""

    def open(self, setup: EngineSetup) -> "NoOpEngine":
        return NoOpEngine()


class NoOpEngine:
    """Engine, as far as groups use it: answers have random lengths and come at once."""

    version = 0

    async def request(self, request: Request) -> Answer:
        count = 1 + (request.sampling.seed or 0) % _LONGEST
        zeros = np.zeros(count, np.int32)
        return Answer(
            id=request.id,
            token_T=zeros,
            logp_T=zeros.astype(np.float32),
            version_T=zeros + self.version,
            finish="stop",
        )

    async def abort(self, ids: Sequence[str]) -> None:
        pass

    async def begin_swap(self, version: int) -> None:
        pass

    async def commit_swap(self, version: int) -> None:
        self.version = version

    def shutdown(self) -> None:
        pass


@dataclass
class DriverRun:
    """Prompts, reward, trainer and sync of a run on no-op engines. CPU seconds are those of this process."""

    rollout: RayRollout
    version: int = 0
    position: int = 0
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_at: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    references: list[int] = field(default_factory=list)

    def roles(self, credit: CreditAssignment) -> Roles:
        one: Any = self
        return Roles(
            prompts=one,
            engine=self.rollout,
            reward=one,
            credit=credit,
            pack_minibatches=self._minibatches,
            trainer=one,
            sync=one,
            evaluator=None,
            observe=_Observer(self),
            stop_requested=lambda: False,
        )

    @contextlib.contextmanager
    def cpu(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.spent_s[name] += time.process_time() - start

    def take(self, count: int) -> list[Prompt]:
        first, self.position = self.position, self.position + count
        return self.at(range(first, self.position))

    def at(self, indices: Sequence[int]) -> list[Prompt]:
        return [Prompt(f"train/{index}", tuple(range(64)), {"answer": "0"}) for index in indices]

    def state_dict(self) -> dict[str, int]:
        return {}

    async def score(self, groups: Sequence[Group], *, keep_text: Collection[Trajectory] = ()) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i % 2)

    def _minibatches(self, batch: Batch) -> list[Minibatch]:
        with self.cpu("minibatches"):
            return pack_minibatches(
                batch, minibatch_prompts=1024, epochs=1, num_ranks=16, microbatch_tokens=32768, seed=0
            )

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        with self.cpu("pack"):
            Batch.pack(batch.step, batch.groups)  # once more, as the loop did
        return {}

    async def step(self, index: int) -> StepReport:
        return StepReport(self.version + 1, 0.0, 0.0, 1e-6, {})

    async def save(self, step: int, progress: Mapping[str, Any], groups: Any) -> None:
        pass

    async def finish_saving(self) -> None:
        pass

    async def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[InspectedTrajectory]:
        return []

    async def push(self, version: int) -> SwapReport:
        self.version = version
        await self.rollout.all("begin_swap", version)
        await self.rollout.all("commit_swap", version)
        return SwapReport(version, 0.0, 1, 1, 0, True)


@dataclass
class _Observer:
    run: DriverRun

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        if name != "adv":
            yield
            return
        with self.run.cpu("credit"):
            yield

    def step(
        self, step: int, batch: Batch, reports: Any, swap: Any, metrics: Any, *, minibatches: Any
    ) -> None:
        with self.run.cpu("observation"):
            limits = Limits(max_prompt_tokens=64, num_devices=16)
            step_metrics(batch, reports, swap, {"step": 1.0, "gen": 1.0}, limits)
            balance_metrics(batch, minibatches)
        self.run.cpu_at.append(time.process_time())
        self.run.memory.append(psutil.Process().memory_info().rss)
        self.run.references.append(len(batch.blocks))

    def rollouts(self, batch: Batch, found: Any, why: Any) -> None:
        pass

    def warn(self, about: str, text: str) -> None:
        pass

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        pass


def measure(engines: int, prompts: int, samples: int, steps: int) -> dict[str, float]:
    """The driver's work in a step, on this machine: CPU seconds, memory and references."""
    cfg = config(prompts, samples, steps, max_lag=1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        setup = EngineSetup(model_folder="", log_path="", parallel=EngineParallel())
        worker: Any = RolloutWorker
        actors = [worker.options(num_cpus=0).remote(NoOpKind(), setup) for _ in range(engines)]
        rollout = RayRollout(WorkerGroup("engine", actors, Path(), 600.0), ClusterConfig())
        driver = DriverRun(rollout)

        async def play() -> None:
            await rollout.start()
            credit = replace(load_credit(cfg.algorithm), guards=True)
            try:
                await run(cfg, driver.roles(credit))
            finally:
                await rollout.stop()

        asyncio.run(play())
    finally:
        ray.shutdown()
    own = {f"{name}_s": spent / steps for name, spent in driver.spent_s.items()}
    whole = float(np.mean(np.diff(driver.cpu_at)))
    return {
        "engines": engines,
        "trajectories": prompts * samples,
        **own,
        "own_s": sum(own.values()),
        "messages_and_stream_s": whole - sum(own.values()),
        "memory_growth_mib": (driver.memory[-1] - driver.memory[0]) / 2**20 / (steps - 1),
        "references": float(np.mean(driver.references)),
    }
