"""Groups on their way from prompts to training, one by one.

    start()  prompts -> engine.submit          as many as the schedule allows, at once when there is room
    collect() engine.completed -> unscored     groups come in any order
    score()  reward.score -> schedule.finish   while other groups are still sampled
    take()   schedule.choose -> a step         waits until the schedule has the groups of a step

The three tasks run beside the training loop, which calls take() and serve(). An error of theirs reaches the
loop in take(), after the steps that could still be taken.
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from hybridrl.config.schema import Config
from hybridrl.controller.goodput import Goodput
from hybridrl.controller.roles import Observer, Roles
from hybridrl.controller.sampling import group_task
from hybridrl.controller.schedule import Chosen, Plan, Schedule
from hybridrl.controller.selection import selection_metrics, with_signal
from hybridrl.controller.shown import evenly, kept_texts, of_lot
from hybridrl.controller.unjudged import leave_out, num_episodes, refuse_unjudged, unjudged_metrics
from hybridrl.environments.failures import refuse_failures
from hybridrl.saved_groups import SavedGroups, pack_groups
from hybridrl.types import Group, GroupTask, PolicyVersion, Prompt, mean

_MOST_STARTED = 256
"""Groups of one submission, so that engines begin while further prompts are read."""

_SCORERS = 4
"""Calls of the reward that run at once; one if there is a reward model, whose ranks work together."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The scored groups of one policy update, by the index of their prompts."""

    groups: list[Group]
    metrics: dict[str, float] = field(default_factory=dict)


class RolloutStream:
    """Use it as a context: leaving it ends the tasks."""

    def __init__(self, cfg: Config, roles: Roles, resumed: SavedGroups | None = None) -> None:
        """
        Args:
            resumed: the open groups of the checkpoint that the run resumes from.
        """
        self._cfg, self._roles, self._dynamic = cfg, roles, cfg.algorithm.dynamic_sampling
        next_index = roles.prompts.position
        self._schedule = Schedule(Plan.of(cfg), version=roles.trainer.version, next_index=next_index)
        self.goodput = Goodput("stale" if cfg.batch.max_lag else "aborted")
        self._prompts: dict[int, Prompt] = {}
        self._groups: dict[int, Group] = {}
        """Finished groups by index."""

        self._flat: list[Group] = []
        """Flat groups since the last step was taken."""

        self._ended: list[int] = []
        """Lengths of the answers that ended since the last step was taken."""

        self._unjudged: list[str] = []
        """Why answers that ended since then have no reward."""

        self._sampling: set[int] = set()
        """Groups that the engines have."""

        self._gen = contextlib.ExitStack()
        self._scoring, self._waited_s = 0, 0.0
        self._waits_since = self._reported_at = time.perf_counter()
        self._unscored: asyncio.Queue[Group] = asyncio.Queue()
        self._room, self._changed, self._submitting = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._failure: Exception | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._restore(resumed)

    async def __aenter__(self) -> Self:
        scorers = 1 if self._cfg.reward_model else _SCORERS
        self._room.set()
        jobs = [self._start(), self._collect(), *(self._score() for _ in range(scorers))]
        self._tasks = [asyncio.create_task(self._guarded(job)) for job in jobs]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._gen.close()

    async def take(self) -> Rollouts:
        """Wait for the groups of the next step.

        Raises:
            Exception: what engine, reward or prompt source raised.
        """
        while not self._schedule.ready():
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            with self._wait_for_bound():
                await self._changed.wait()
        async with self._submitting:
            chosen = self._schedule.choose()
            await self._end_early(chosen.unfinished)
        groups = [self._groups.pop(index) for index in chosen.trained]
        refuse_failed(groups)
        warn_of_overdue(groups, self._roles.observe)
        self._refuse_unjudged(groups, chosen.step)
        self._give_up(chosen)
        metrics = self._metrics(chosen, groups)
        flat, self._flat, self._ended, self._unjudged = self._flat, [], [], []
        if not groups:
            wanted = self._cfg.batch.prompts_per_step
            groups, flat = sorted(flat[:wanted], key=lambda group: group.index), flat[wanted:]
        self.goodput.lose(flat, "flat")
        self._keep_texts(chosen.step, groups)
        for group in groups:
            self._prompts.pop(group.index, None)
        self._room.set()
        return Rollouts(groups, metrics)

    def serve(self, version: PolicyVersion) -> None:
        """The engines serve a new version: further groups may start."""
        self._schedule.serve(version)
        self._room.set()

    async def usage(self) -> dict[str, float]:
        """Metrics of engines and tokens since the last call."""
        self._note_waiting()
        elapsed_s = max(self._waits_since - self._reported_at, 1e-9)
        waited_s, self._waited_s, self._reported_at = self._waited_s, 0.0, self._waits_since
        report = self.goodput.report(await self._roles.engine.usage(), waiting_share=waited_s / elapsed_s)
        return {**report, **self._roles.take_judge_counts()}

    def open_groups(self) -> SavedGroups:
        """The open groups, for a checkpoint."""
        ended = self._schedule.finished
        others = {*self._schedule.open, *self._schedule.to_start_again}.difference(ended)
        return pack_groups([self._groups[index] for index in ended], sorted(others))

    def _restore(self, resumed: SavedGroups | None) -> None:
        if resumed is None:
            return
        indices = [*resumed.indices, *resumed.unfinished]
        self._prompts = dict(zip(indices, self._roles.prompts.at(indices), strict=True))
        self._groups = {group.index: group for group in resumed.groups(self._prompts)}
        self._schedule.restore(
            [(index, _oldest(group)) for index, group in self._groups.items()], resumed.unfinished
        )
        self.goodput.resume(self._groups.values())

    async def _start(self) -> None:
        while True:
            await self._room.wait()
            self._room.clear()
            while await self._submit():
                await asyncio.sleep(0)

    async def _submit(self) -> bool:
        """Start further groups; returns whether there was room."""
        async with self._submitting:
            indices = self._schedule.start(min(_MOST_STARTED, self._schedule.startable()))
            if not indices:
                return False
            tasks = self._tasks_of(indices)
            self._note_waiting()
            if not self._sampling:
                self._gen.enter_context(self._roles.observe.span("gen"))
            self._sampling.update(indices)
            await self._roles.engine.submit(tasks)
            return True

    def _tasks_of(self, indices: Sequence[int]) -> list[GroupTask]:
        fresh = [index for index in indices if index not in self._prompts]
        self._prompts |= zip(fresh, self._roles.prompts.take(len(fresh)), strict=True)
        greedy = self._roles.credit.needs_greedy_answers
        return [group_task(self._cfg, index, self._prompts[index], greedy=greedy) for index in indices]

    async def _end_early(self, indices: Sequence[int]) -> None:
        if indices:
            await self._roles.engine.cancel(indices)
            self._left_engines(indices)

    async def _collect(self) -> None:
        while True:
            groups = await self._roles.engine.completed()
            self._scoring += len(groups)
            self._left_engines([group.index for group in groups])
            for group in groups:
                self._unscored.put_nowait(group)

    def _left_engines(self, indices: Sequence[int]) -> None:
        self._note_waiting()
        self._sampling.difference_update(indices)
        if not self._sampling:
            self._gen.close()

    async def _score(self) -> None:
        """Score all groups that wait for it, again and again."""
        while True:
            groups = [await self._unscored.get()]
            while not self._unscored.empty():
                groups.append(self._unscored.get_nowait())
            with self._roles.observe.span("reward"):
                shown = of_lot(groups, self._cfg.batch.prompts_per_step, self._texts_wanted())
                await self._roles.reward.score(groups, keep_text=shown)
                await self._score_greedy(groups)
            oldest = [_oldest(group) for group in groups]
            self.goodput.lose_tokens(leave_out(groups), "no_gradient")
            self._unjudged += [why for group in groups for why in group.unjudged]
            self._note_waiting()
            self._scoring -= len(groups)
            for group, version, signal in zip(groups, oldest, self._signals(groups), strict=True):
                self._finish(group, version, flat=not signal)
            self._changed.set()
            self._room.set()

    async def _score_greedy(self, groups: Sequence[Group]) -> None:
        greedy = [group.greedy for group in groups if group.greedy is not None]
        if not greedy:
            return
        await self._roles.reward.score(greedy)
        for group in groups:
            if group.greedy is not None:
                group.greedy_reward = group.greedy.trajectories[0].reward

    def _refuse_unjudged(self, groups: Sequence[Group], step: int) -> None:
        """End a run whose judge fails too often."""
        if self._unjudged:
            judged = num_episodes([*groups, *self._flat])
            most = self._cfg.reward.max_unjudged
            refuse_unjudged(self._unjudged, judged=judged, most=most, what=f"step {step}")
            self._roles.observe.warn("unjudged", f"an answer has no reward: {self._unjudged[0]}")

    def _signals(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group can be trained on."""
        judged = [group for group in groups if group.trajectories]
        found = iter(with_signal(judged, self._dynamic) if self._dynamic and judged else [True] * len(judged))
        return [bool(group.trajectories) and next(found) for group in groups]

    def _finish(self, group: Group, oldest: PolicyVersion, *, flat: bool) -> None:
        if not self._schedule.finish(group.index, oldest=oldest, flat=flat):
            self.goodput.lose([group], self.goodput.lost)
            return
        self._ended += [t.response_tokens for t in group.trajectories]
        if flat:
            if group.trajectories:
                self._flat.append(group)
            del self._prompts[group.index]
        else:
            self._groups[group.index] = group

    def _give_up(self, chosen: Chosen) -> None:
        """Forget what is neither trained on nor kept."""
        given_up = [*chosen.aborted, *chosen.dropped]
        lost = [self._groups.pop(index) for index in given_up if index in self._groups]
        self.goodput.lose(lost, self.goodput.lost)
        for index in chosen.dropped:
            del self._prompts[index]

    def _metrics(self, chosen: Chosen, groups: Sequence[Group]) -> dict[str, float]:
        wanted, step = self._cfg.batch.prompts_per_step, chosen.step
        if len(groups) < wanted and self._dynamic:
            sampled = len(groups) + len(self._flat)
            self._roles.observe.warn(
                "dynamic_sampling",
                f"step {step}: {len(groups)} of {wanted} groups carry a signal after {sampled} prompts; "
                "the other prompts are always solved, or never",
            )
        return {
            "rollout/groups/open": float(len(self._schedule.open)),
            "rollout/groups/aborted": float(len(chosen.aborted)),
            "rollout/groups/dropped": float(len(chosen.dropped)),
            **(unjudged_metrics(self._unjudged) if self._unjudged else {}),
            **({"rollout/ended_length": mean(self._ended)} if self._ended else {}),
            **(selection_metrics(self._flat, groups) if self._dynamic else {}),
        }

    def _texts_wanted(self) -> int:
        """Answers to keep as text of each lot: one of the steps that may train on it shows some."""
        step, lag = self._schedule.step, self._cfg.batch.max_lag
        return max(kept_texts(self._cfg, at) for at in range(step, step + lag + 1))

    def _keep_texts(self, step: int, groups: Sequence[Group]) -> None:
        """Keep as many texts as the step shows."""
        have = [t for group in groups for t in group.trajectories if t.text is not None]
        shown = {id(trajectory) for trajectory in evenly(have, kept_texts(self._cfg, step))}
        for trajectory in have:
            trajectory.text = trajectory.text if id(trajectory) in shown else None

    def _wait_for_bound(self) -> contextlib.AbstractContextManager[None]:
        if self._schedule.waits_for_bound:
            return self._roles.observe.span("wait_for_bound")
        return contextlib.nullcontext()

    def _note_waiting(self) -> None:
        """Count the seconds in which rewards were awaited and nothing was sampled, before either changes."""
        now = time.perf_counter()
        if self._scoring and not self._sampling:
            self._waited_s += now - self._waits_since
        self._waits_since = now

    async def _guarded(self, job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except Exception as error:  # handed to take(), which raises it where the run can end
            self._failure = self._failure or error
            self._changed.set()


def refuse_failed(groups: Sequence[Group]) -> None:
    """End a run whose environments fail too often.

    Raises:
        EnvironmentFailedError: so many episodes of these groups failed; the message has the first cause.
    """
    failures = [failure for group in groups for failure in group.failures]
    played = sum(len({t.episode for t in g.trajectories if t.ended != "failed"}) for g in groups)
    refuse_failures(failures, played=played, what="a step")


def warn_of_overdue(groups: Sequence[Group], observe: Observer) -> None:
    """Tell the user what a program was doing when its episode ended at its deadline."""
    if found := [overdue for group in groups for overdue in group.overdue]:
        observe.warn("overdue", found[0])


def _oldest(group: Group) -> PolicyVersion:
    return min(trajectory.version for trajectory in group.trajectories)
