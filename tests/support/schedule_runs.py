"""A run on a Schedule alone: groups and steps take given times, and kills come after given steps."""

import heapq
import random
from dataclasses import dataclass, field

from hybridrl.controller.schedule import Plan, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """How long things take, drawn from a seed."""

    seed: int = 0
    slow_share: float = 0.5
    """Share of groups that take about `slow` times as long as the others."""

    slow: float = 20.0
    step_s: float = 3.0
    flat_share: float = 0.0
    kill_at: tuple[int, ...] = ()
    """Steps after which the run is killed while the next groups run; it resumes from that step's state."""

    def of(self, index: int, version: int) -> float:
        draw = random.Random(f"{self.seed} {index} {version}")
        return draw.expovariate(1.0) * (self.slow if draw.random() < self.slow_share else 1.0)

    def flat(self, index: int) -> bool:
        return random.Random(f"flat {self.seed} {index}").random() < self.flat_share


@dataclass
class Simulation:
    """One run, and what became of every group."""

    plan: Plan
    delays: Delays
    kind: type[Schedule] = Schedule
    trained: dict[int, list[int]] = field(default_factory=dict)
    """Step -> indices."""

    version: dict[int, int] = field(default_factory=dict)
    """Index -> version of its last start."""

    lags: list[int] = field(default_factory=list)
    flat: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    aborts: dict[int, int] = field(default_factory=dict)
    most_open: int = 0
    now: float = 0.0

    def play(self) -> "Simulation":
        state, version = None, 0
        while version < self.plan.steps:
            version, state = self._session(version, state)
        return self

    def _session(self, version: int, state) -> tuple[int, tuple]:
        """From a start or a resume to the end or the next kill."""
        self.schedule = self.kind(self.plan, version=version, next_index=state[0] if state else 0)
        if state:
            self.schedule.restore(state[1], state[2])
        events: list[tuple[float, int]] = []
        while version < self.plan.steps:
            self._start(events, version)
            while not self.schedule.ready():
                self._next_end(events, version)
            chosen = self.schedule.choose()
            self._note(chosen)
            self._start(events, version)
            self._until(self.now + self.delays.step_s, events, version)
            version += 1
            self.schedule.serve(version)
            state = self._state()
            if version in self.delays.kill_at:
                self._until(self.now + 0.5, events, version)
                break
        return version, state

    def _state(self) -> tuple:
        finished = list(self.schedule.finished)
        unfinished = {*self.schedule.open, *self.schedule.to_start_again} - set(finished)
        return self.schedule.next_index, [(i, self.version[i]) for i in finished], unfinished

    def _start(self, events, version: int) -> None:
        for index in self.schedule.start(self.schedule.startable()):
            self.version[index] = version
            heapq.heappush(events, (self.now + self.delays.of(index, version), index))
        self.most_open = max(self.most_open, len(list(self.schedule.open)))

    def _next_end(self, events, version: int) -> None:
        assert events, "nothing runs, and the step waits"
        self.now, index = heapq.heappop(events)
        flat = self.delays.flat(index)
        if self.schedule.finish(index, oldest=self.version[index], flat=flat) and flat:
            self.flat.append(index)
        self._start(events, version)

    def _until(self, end: float, events, version: int) -> None:
        while events and events[0][0] <= end:
            self._next_end(events, version)
        self.now = end

    def _note(self, chosen) -> None:
        assert chosen.step not in self.trained
        self.trained[chosen.step] = chosen.trained
        self.lags += [chosen.step - 1 - self.version[i] for i in chosen.trained]
        self.dropped += chosen.dropped
        for index in chosen.aborted:
            self.aborts[index] = self.aborts.get(index, 0) + 1
