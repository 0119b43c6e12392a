"""What the training loop needs from the world, as Protocols. The loop sees no Ray handle and no Megatron."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.controller.advantage import CreditAssignment
from hybridrl.saved_groups import SavedGroups
from hybridrl.types import (
    Group,
    GroupTask,
    InspectedTrajectory,
    PolicyVersion,
    Prompt,
    Sampling,
    StepReport,
    SwapReport,
    Trajectory,
    Usage,
)


class PromptSource(Protocol):
    """An endless stream of prompts, reshuffled at each epoch from a seed, that can be reset to any
    position."""

    @property
    def position(self) -> int:
        """Number of prompts taken since the beginning of the stream."""
        ...

    def take(self, count: int) -> list[Prompt]:
        """The next prompts."""
        ...

    def at(self, indices: Sequence[int]) -> list[Prompt]:
        """The prompts of these indices in the stream; the position does not change."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class RolloutEngine(Protocol):
    """One or more engines that answer prompts with the weights of the last committed swap."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """One group per prompt, in order, all answered by one policy version.

        Raises:
            EngineError: an engine failed, or its weights are not those of a committed version.
        """
        ...

    async def submit(self, tasks: Sequence[GroupTask]) -> None:
        """Accept groups to answer; this returns once they are accepted.

        All samples of a group go to one engine, the one with the least work.

        Raises:
            EngineError: an engine failed.
        """
        ...

    async def completed(self) -> list[Group]:
        """Wait for further groups whose answers are complete: at least one, in any order.

        Raises:
            EngineError: an engine failed, or its weights are not those of a committed version.
        """
        ...

    async def cancel(self, indices: Iterable[int]) -> None:
        """End open groups early. `completed` returns none of them afterwards.

        Indices of groups that are not open are ignored.
        """
        ...

    async def sleep(self) -> None:
        """Release the memory that only generation needs; no prompt is sent before the next swap.

        Open requests end before; if the swap mode is in_flight, they are paused and stay open.
        """
        ...

    async def usage(self) -> Usage:
        """What the engines did since the last call."""
        ...


class Reward(Protocol):
    """Gives every trajectory of the groups its reward, in place, or says why it has none."""

    async def score(self, groups: Sequence[Group], *, keep_text: Collection[Trajectory] = ()) -> None:
        """
        Args:
            keep_text: trajectories whose answer is kept as text.

        Raises:
            RewardError: the reward raised, or returned something that is not a finite number.
            DeadlineError: it did not return in time.
        """
        ...


class RewardModel(Protocol):
    """A model that scores whole trajectories, over all its ranks."""

    async def scores(self, groups: Sequence[Group]) -> np.ndarray:
        """Score of each trajectory, after its last token; float32 [N], in the order of the groups.

        Raises:
            DataError: a trajectory has a token that is not in the model's vocabulary.
        """
        ...


class PolicyTrainer(Protocol):
    """The actor, over all its ranks."""

    @property
    def version(self) -> PolicyVersion: ...

    async def load(self, batch: Batch, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """Hand the batch to the ranks and compute the columns that the algorithm needs (old_logp, ref_logp,
        ...)."""
        ...

    async def step(self, index: int) -> StepReport:
        """One optimizer step on minibatch `index` of the loaded batch."""
        ...

    async def inspect(self, rows: Sequence[int], num_suspicious: int) -> list[InspectedTrajectory]:
        """Some trajectories of the loaded batch with their tokens, for a person to read.

        Args:
            rows: indices in the batch.
            num_suspicious: further ones, on which trainer and engine disagree most.
        """
        ...

    async def save(self, step: int, progress: Mapping[str, Any], groups: SavedGroups) -> None:
        """Write a checkpoint that holds the controller's progress and its open groups too, and commit it.

        The training may go on meanwhile; the next `save`, and `finish_saving`, wait until it is committed.
        """
        ...

    async def finish_saving(self) -> None:
        """Wait until the last checkpoint is committed."""
        ...


class WeightSync(Protocol):
    """Puts the trainer's weights into every engine, in place."""

    async def push(self, version: PolicyVersion) -> SwapReport:
        """
        Raises:
            SwapError: the swap did not commit; the engines concerned do not serve.
        """
        ...


class Observer(Protocol):
    """Times, metrics and samples of a run."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Add the time spent inside to timing_s/<name> of the current step."""
        ...

    def step(
        self,
        step: int,
        batch: Batch,
        reports: Sequence[StepReport],
        swap: SwapReport | None,
        metrics: Mapping[str, float],
        *,
        minibatches: Sequence[Minibatch],
    ) -> None:
        """Publish policy update `step`; the spans entered since the last call are its timings.

        Args:
            swap: None: the weights of the update were not pushed.
        """
        ...

    def rollouts(
        self, batch: Batch, found: Sequence[InspectedTrajectory], why: Mapping[int, Sequence[str]]
    ) -> None:
        """Write down trajectories of a step token by token.

        Args:
            why: by index in the batch, why a trajectory is worth reading.
        """
        ...

    def warn(self, about: str, text: str) -> None:
        """Warn the user of something suspicious, once for each value of `about`."""
        ...

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...


class HeldOut(Protocol):
    """The held-out evaluation."""

    async def run(self, step: int) -> dict[str, float]:
        """Metrics of the policy that the engines serve."""
        ...


PlanMinibatches = Callable[[Batch], Sequence[Minibatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The objects that do the work. None of them is a Ray handle, so tests run this very loop on small
    in-process fakes."""

    prompts: PromptSource
    engine: RolloutEngine
    reward: Reward
    credit: CreditAssignment
    pack_minibatches: PlanMinibatches
    trainer: PolicyTrainer
    sync: WeightSync
    evaluator: HeldOut | None
    observe: Observer
    stop_requested: Callable[[], bool]
    """Whether the current step shall be the last, with a checkpoint; called once a step."""

    take_judge_counts: Callable[[], Mapping[str, float]] = dict
    """What judges were asked since the last call, by metric."""
