"""Small classes that satisfy the roles of the loop in one process, and note what happened in which order."""

import asyncio
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from hybridrl.batch import Batch, Minibatch, TokenBlock
from hybridrl.bench.workloads import fake_clock
from hybridrl.config.schema import AlgorithmConfig, Config
from hybridrl.controller.advantage import CreditAssignment, load_credit
from hybridrl.controller.roles import Roles
from hybridrl.controller.stream import Rollouts, RolloutStream
from hybridrl.types import (
    Group,
    GroupTask,
    InspectedTrajectory,
    Prompt,
    StepReport,
    SwapReport,
    Trajectory,
    Usage,
)

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
batch: {prompts_per_step: 4, minibatch_prompts: 2}
algorithm: {samples_per_prompt: 2}
run: {name: first, folder: out, steps: 3, export: false}
observe: {sinks: []}
"""
"""A config for a run on these fakes."""


def config(**changes) -> Config:
    """6 steps, 4 prompts x 2 answers; `changes` replaces keys of a section, as in run={"steps": 3}."""
    sections = {
        "run": {"name": "test", "steps": 6, "evaluate_every": 2, "save_every": 3},
        "batch": {"prompts_per_step": 4, "minibatch_prompts": 2},
        "algorithm": {"samples_per_prompt": 2},
    }
    for section, keys in changes.items():
        sections[section] = {**sections.get(section, {}), **keys}
    return Config.model_validate(
        {"model": "m", "data": {"train": "d.jsonl"}, "reward": "exact_match", **sections}
    )


class CountingPrompts:
    def __init__(self, taken: int = 0) -> None:
        self.taken = taken

    def take(self, count: int) -> list[Prompt]:
        first, self.taken = self.taken, self.taken + count
        return [
            Prompt(uid=f"train/{i}", token_ids=(1, 2), row={"answer": str(i)})
            for i in range(first, self.taken)
        ]

    @property
    def position(self) -> int:
        return self.taken

    def at(self, indices) -> list[Prompt]:
        return [prompt for i in indices for prompt in CountingPrompts(i).take(1)]

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.taken = state["taken"]


@dataclass
class World:
    """Engine, reward, trainer and sync that share one list of events."""

    events: list = field(default_factory=list)
    served: int | None = None
    """Version in the engines."""

    version: int = 0
    generate_s: float = 0.0
    update_s: float = 0.0
    fail_at_prompt: int | None = None
    stop_in_step: int | None = None
    """A signal to stop arrives while this step runs."""

    prompts: CountingPrompts = field(default_factory=CountingPrompts)
    spans: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    tasks: list[GroupTask] = field(default_factory=list)
    running: dict[int, asyncio.Task] = field(default_factory=dict)
    done: asyncio.Queue = field(default_factory=asyncio.Queue)
    used: Usage = Usage(generating_s=2.0, paused_s=1.0, idle_s=1.0)
    metrics: list[dict[str, float]] = field(default_factory=list)
    saved: list = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    credit: CreditAssignment = field(default_factory=lambda: load_credit(AlgorithmConfig()))

    async def generate(self, prompts, sampling) -> list[Group]:
        """Held-out answers."""
        return [self.answered(prompt, sampling, i) for i, prompt in enumerate(prompts)]

    async def submit(self, tasks) -> None:
        for task in tasks:
            self.tasks.append(task)
            self.running[task.index] = asyncio.create_task(self._answer(task))

    async def completed(self) -> list[Group]:
        found = await self.done.get()
        if isinstance(found, Exception):
            raise found
        return [found]

    async def cancel(self, indices) -> None:
        for index in [index for index in indices if index in self.running]:
            self.running.pop(index).cancel()
            self.used = replace(
                self.used,
                aborted_tokens=self.used.aborted_tokens + 1,
                sampled_tokens=self.used.sampled_tokens + 1,
            )

    async def usage(self) -> Usage:
        used, self.used = self.used, Usage(generating_s=2.0, paused_s=1.0, idle_s=1.0)
        return used

    def seconds(self, task) -> float:
        """Time to answer a task."""
        return self.generate_s

    async def _answer(self, task) -> None:
        version = self.served
        assert version is not None, "sampled before the first swap"
        await asyncio.sleep(self.seconds(task))
        if task.prompt.uid == f"train/{self.fail_at_prompt}":
            return self.done.put_nowait(RuntimeError("engine broke"))
        group = self.answered(task.prompt, task.sampling, task.index, version)
        if task.greedy is not None:
            group.greedy = self.answered(task.prompt, task.greedy, task.index, version)
        del self.running[task.index]
        count = len(group.trajectories) + (group.greedy is not None)
        self.used = replace(self.used, sampled_tokens=self.used.sampled_tokens + count)
        self.events.append(("generated", task.prompt.uid, version))
        self.done.put_nowait(group)

    def answered(self, prompt, sampling, index, version=None) -> Group:
        """One token an answer."""
        version, count = (self.served or 0) if version is None else version, sampling.num_samples
        block = TokenBlock.from_answers([(1, 2)] * count, [(3,)] * count, [(-1.0,)] * count, version)
        answers = [Trajectory(row, 2, 1, 1, "stop", version) for row in range(count)]
        return Group(prompt, answers, block, index=index)

    async def sleep(self) -> None:
        self.events.append(("sleep",))

    async def score(self, groups, *, keep_text=()) -> None:
        for group in groups:
            for i, trajectory in enumerate(group.trajectories):
                trajectory.reward = float(i)
                trajectory.text = "an answer" if keep_text and not i else None

    async def load(self, batch, minibatches) -> dict[str, float]:
        self.batches.append(batch)
        self.events.append(("load", batch.step))
        return {}

    async def step(self, index) -> StepReport:
        await asyncio.sleep(self.update_s)
        if index == self.num_minibatches - 1:
            self.version += 1
        return StepReport(self.version, 0.0, 0.0, 1e-3, {}, (("mask", "left out"),))

    num_minibatches = 2

    async def inspect(self, rows, num_suspicious) -> list[InspectedTrajectory]:
        self.events.append(("inspect", tuple(rows), num_suspicious))
        return []

    async def save(self, step, progress, groups) -> None:
        self.events.append(("save", step, progress))
        self.saved.append(groups)

    async def finish_saving(self) -> None:
        self.events.append(("saved", self.version))

    async def push(self, version) -> SwapReport:
        assert version == self.version
        self.served = version
        self.events.append(("push", version))
        return SwapReport(version, 0.0, 1, 1, 0, True)

    def roles(self, evaluator=None) -> Roles:
        return Roles(
            prompts=self.prompts,
            engine=self,
            reward=self,
            credit=self.credit,
            pack_minibatches=self._partition,
            trainer=self,
            sync=self,
            evaluator=evaluator,
            observe=Notes(self),
            stop_requested=lambda: self.version == self.stop_in_step,
        )

    def _partition(self, batch: Batch) -> list[Minibatch]:
        """Every trajectory in one minibatch, on one rank."""
        rows = [tuple(range(i, len(batch), self.num_minibatches)) for i in range(self.num_minibatches)]
        return [Minibatch(i, ((each,),), len(each), len(each)) for i, each in enumerate(rows)]


@dataclass
class Notes:
    """Observer."""

    world: World

    @contextmanager
    def span(self, name):
        self.world.spans.append(name)
        yield

    def step(self, step, batch, reports, swap, metrics, *, minibatches) -> None:
        self.world.events.append(("observed", step))
        self.world.metrics.append(dict(metrics))
        assert np.isfinite(batch.advantage_N).all()

    def rollouts(self, batch, found, why) -> None:
        self.world.events.append(("rollouts", batch.step))

    def warn(self, about, text) -> None:
        self.world.warnings.append((about, text))

    def evaluation(self, step, metrics) -> None:
        self.world.evaluations[step] = metrics


def first_step(cfg: Config, world: World, roles: Roles | None = None) -> Rollouts:
    """What the first step of a run trains on."""

    async def take() -> Rollouts:
        async with RolloutStream(cfg, roles or world.roles()) as stream:
            return await stream.take()

    world.served = 0
    return fake_clock.run(take())
