"""Which groups start, which groups a step trains on, and which ones the bound on staleness is waiting for.

This is a state machine without clock and without I/O. A group starts with the policy version that the engines
serve, v, and may be trained on up to step v + 1 + max_lag, its last step. Groups that are started and not yet
trained on are open. Two rules keep the bound:

- admission: with a new group, at most j x prompts_per_step open groups are left for j steps to come;
- choice: for each j >= 0, at most j x prompts_per_step open groups that remain after step s have their last
  step at s + j or before. A step that cannot choose so waits for the groups that the bound needs.
"""

import math
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from hybridrl.config.schema import Config
from hybridrl.types import PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a schedule needs to know of a config."""

    prompts_per_step: int
    steps: int
    """Last step of the run."""

    max_lag: int = 0
    order: Literal["fifo", "finished"] = "fifo"
    stale: Literal["wait", "mask", "drop"] = "wait"
    unfinished: Literal["carry", "abort"] | None = None
    open_groups: int | None = None
    """Most open groups. None: (max_lag + 1) x prompts_per_step."""

    replaced: int = 0
    """Most flat groups that are replaced in a step."""

    @classmethod
    def of(cls, cfg: Config) -> "Plan":
        dynamic, batch = cfg.algorithm.dynamic_sampling, cfg.batch
        return cls(
            prompts_per_step=batch.prompts_per_step,
            steps=cfg.run.steps,
            max_lag=batch.max_lag,
            order=batch.order,
            stale=batch.stale,
            unfinished=batch.unfinished,
            open_groups=math.ceil(batch.prompts_per_step * batch.oversample) if batch.oversample else None,
            replaced=(dynamic.max_rounds - 1) * batch.prompts_per_step if dynamic else 0,
        )

    @property
    def most_open(self) -> int:
        return self.open_groups or (self.max_lag + 1) * self.prompts_per_step

    @property
    def aborts(self) -> bool:
        """Whether no group outlasts a step."""
        return self.max_lag == 0 or self.unfinished == "abort"


@dataclass(slots=True)
class Entry:
    """A group that is started and not yet trained on."""

    index: int
    last_step: int
    """Last step that may train on it."""

    finished: bool = False
    started_before: bool = False
    """Whether it was started before and ended early, so that the next step has to wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The groups of a step, by index in ascending order, and what became of others."""

    step: int
    trained: list[int]
    aborted: list[int] = field(default_factory=list)
    """Groups that are not trained on in time, and start again; finished ones are among them."""

    dropped: list[int] = field(default_factory=list)
    """Groups that are too old and do not start again; finished ones are among them."""

    unfinished: list[int] = field(default_factory=list)
    """The aborted and dropped groups that still run."""


class Schedule:
    """The open groups of a run."""

    def __init__(self, plan: Plan, *, version: PolicyVersion = 0, next_index: int = 0) -> None:
        """
        Args:
            version: version that the engines serve.
            next_index: index of the first prompt that was never started.
        """
        self._plan = plan
        self._served, self._step = version, version + 1
        self._next_index = next_index
        self._again: deque[int] = deque()
        self._open: dict[int, Entry] = {}
        self._line: list[int] = []
        """Indices of the open groups, ascending."""

        self._ended: dict[int, Entry] = {}
        """Finished groups, in the order in which they ended."""

        self._leading = 0
        """Finished groups at the beginning of `_line`."""

        self._finished_by: Counter[int] = Counter()
        self._open_by: Counter[int] = Counter()
        """Groups by their last step; `_finished_by` counts the finished ones."""

        self._replaceable, self._unreplaced = plan.replaced, 0

    @property
    def step(self) -> int:
        """The next step that chooses its groups."""
        return self._step

    @property
    def next_index(self) -> int:
        """Index of the first prompt that was never started."""
        return self._next_index

    @property
    def open(self) -> tuple[int, ...]:
        """Indices of all open groups, ascending."""
        return tuple(self._line)

    @property
    def finished(self) -> tuple[int, ...]:
        """Indices of finished open groups, in the order in which they ended."""
        return tuple(self._ended)

    @property
    def to_start_again(self) -> tuple[int, ...]:
        """Indices of groups that ended early and start before any others."""
        return tuple(self._again)

    def startable(self) -> int:
        """Number of groups that may start now."""
        plan, steps_left = self._plan, self._plan.steps - self._step + 1
        in_time = self._served + plan.max_lag + 2 - self._step
        if steps_left <= 0 or in_time <= 0:
            return 0
        most = plan.most_open
        if not plan.aborts:
            most = min(most, min(in_time, steps_left) * plan.prompts_per_step)
        return max(0, most - len(self._open) - self._unreplaced)

    def start(self, count: int) -> list[int]:
        """Open groups; returns their indices, those that start again first."""
        again = [self._again.popleft() for _ in range(min(count, len(self._again)))]
        fresh = range(self._next_index, self._next_index + count - len(again))
        self._next_index = fresh.stop
        for index in again:
            self._add(Entry(index, self._served + 1 + self._plan.max_lag, started_before=True))
        for index in fresh:
            self._add(Entry(index, self._served + 1 + self._plan.max_lag))
        return [*again, *fresh]

    def restore(self, finished: Iterable[tuple[int, PolicyVersion]], unfinished: Iterable[int]) -> None:
        """Take over what was open in a checkpoint, before anything is started.

        Args:
            finished: index and oldest version of each finished group, in the order in which they ended.
            unfinished: indices of the others; they start before any others.
        """
        for index, oldest in finished:
            self._add(Entry(index, oldest + 1 + self._plan.max_lag))
            self.finish(index, oldest=oldest)
        self._again.extend(sorted(unfinished))

    def finish(self, index: int, *, oldest: PolicyVersion, flat: bool = False) -> bool:
        """A group is complete and scored.

        Args:
            oldest: oldest version that sampled any of its tokens.
            flat: the group carries no signal; it leaves and another one is started in its place.

        Returns:
            False if the group was aborted or dropped meanwhile, also if it has started again since.
        """
        group, last_step = self._open.get(index), oldest + 1 + self._plan.max_lag
        if group is None or group.finished or (group.started_before and last_step < group.last_step):
            return False
        if flat:
            self._remove([index])
            self._unreplaced += self._replaceable == 0
            self._replaceable -= self._replaceable > 0
            return True
        self._open_by[group.last_step] -= 1
        group.last_step = max(group.last_step, last_step)
        self._open_by[group.last_step] += 1
        self._finished_by[group.last_step] += 1
        group.finished = True
        self._ended[index] = group
        self._advance()
        return True

    def serve(self, version: PolicyVersion) -> None:
        """The engines serve a new version."""
        self._served = version

    def ready(self) -> bool:
        """Whether the next step can choose its groups."""
        wanted = self._wanted()
        if wanted is None:
            return False
        if self._plan.order == "fifo":
            return self._leading >= wanted
        return len(self._ended) >= wanted and not self._missing()

    @property
    def waits_for_bound(self) -> bool:
        """Whether the step has enough finished groups, but others have to be in it."""
        wanted = self._wanted()
        return wanted is not None and len(self._ended) >= wanted and not self.ready()

    def choose(self) -> Chosen:
        """Take the groups of the next step. Call this when `ready`."""
        wanted, step = self._wanted(), self._step
        assert wanted is not None and self.ready(), "the step is not ready"
        trained = self._line[:wanted] if self._plan.order == "fifo" else self._by_end(wanted)
        self._remove(trained)
        self._step += 1
        self._replaceable, self._unreplaced = self._plan.replaced, 0
        aborted, dropped = [], []
        if self._plan.aborts:
            aborted = list(self._line)
        elif self._plan.stale == "drop":
            dropped = [index for index in self._line if self._open[index].last_step <= step]
        left = aborted or dropped
        unfinished = [index for index in left if not self._open[index].finished]
        self._remove(left)
        self._again.extend(aborted)
        return Chosen(
            step=step, trained=sorted(trained), aborted=aborted, dropped=dropped, unfinished=unfinished
        )

    def _wanted(self) -> int | None:
        """Number of groups of the next step; None if groups that run or start are still awaited.

        It is less than prompts_per_step if all replacements of flat groups are used up.
        """
        if len(self._ended) >= self._plan.prompts_per_step:
            return self._plan.prompts_per_step
        none_comes = self._unreplaced and not self.startable() and len(self._ended) == len(self._open)
        return len(self._ended) if none_comes else None

    def _missing(self) -> int:
        """Number of groups that the next step must contain and that have not finished."""
        if self._plan.stale != "wait":
            return 0
        return max(needed - done for needed, done in self._quotas())

    def _quotas(self) -> Iterator[tuple[int, int]]:
        """(needed, finished) of the groups whose last step is at most step + j, for j = 0, 1, ...; if no
        group outlasts a step, of those that were started before.

        `needed` of them have to be in the next step.
        """
        if self._plan.aborts:
            again = [group for group in self._open.values() if group.started_before]
            yield len(again), sum(group.finished for group in again)
            return
        due = sum(count for last, count in self._open_by.items() if last < self._step)
        done = sum(count for last, count in self._finished_by.items() if last < self._step)
        for j in range(self._plan.max_lag + 1):
            due += self._open_by[self._step + j]
            done += self._finished_by[self._step + j]
            yield max(0, due - j * self._plan.prompts_per_step), done

    def _by_end(self, wanted: int) -> list[int]:
        """The groups that ended first, after those that the bound needs."""
        chosen: dict[int, None] = {}
        for j, (needed, _) in enumerate(self._quotas()):
            for index, group in self._ended.items():
                if len(chosen) >= min(needed, wanted):
                    break
                if group.started_before if self._plan.aborts else group.last_step <= self._step + j:
                    chosen[index] = None
        for index in self._ended:
            if len(chosen) == wanted:
                break
            chosen[index] = None
        return list(chosen)

    def _add(self, group: Entry) -> None:
        self._open[group.index] = group
        insort(self._line, group.index)
        self._open_by[group.last_step] += 1
        self._leading = min(self._leading, bisect_left(self._line, group.index))
        self._advance()

    def _remove(self, indices: Iterable[int]) -> None:
        gone = set(indices)
        for index in gone:
            group = self._open.pop(index)
            self._open_by[group.last_step] -= 1
            if self._ended.pop(index, None):
                self._finished_by[group.last_step] -= 1
        if len(gone) == 1:
            del self._line[bisect_left(self._line, next(iter(gone)))]
        else:
            self._line = [index for index in self._line if index not in gone]
        self._leading = max(0, self._leading - len(gone))
        self._advance()

    def _advance(self) -> None:
        while self._leading < len(self._line) and self._open[self._line[self._leading]].finished:
            self._leading += 1
