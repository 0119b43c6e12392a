"""Starts a run again from its last checkpoint when its workers died or hung, without being asked: first only
those that train and score, while the engines stay; if that does not help, everything."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from hybridrl.errors import DeadlineError, EngineLostError, HybridRLError, WorkerError
from hybridrl.faults import Fault
from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.observe.doing import last_done, last_step
from hybridrl.trainer.checkpoints import whole_checkpoints
from hybridrl.wording import counted

LOSSES = (WorkerError, DeadlineError, EngineLostError)
"""Errors after which a run may start again."""


class Restarts:
    """The starts of a run. Each is a context, which keeps an error to itself if another start follows:

    for start in Restarts(...):
        with start, SomeRun(resume=start.resume) as run:
            ...
    """

    def __init__(
        self,
        most: int,
        files: RunFiles,
        say: Callable[[str], None],
        *,
        resume: Resume,
    ) -> None:
        """
        Args:
            most: how often a run starts again in a row without a new checkpoint.
            files: the files of the run.
            resume: that of the first start.
        """
        self._most, self._files, self._say = most, files, say
        self.resume: Resume = resume
        self._failed_at = self._sampled_for = -1
        """Step at which the last start failed, and the step for which engines may have sampled by then, whose
        weights an evaluation uses too; -1: none has failed."""

        self._tries, self._saved_before = 0, self._saved()
        self._granted: BaseException | None = None
        """The error for which trainer and reward start again."""

        self._again = True

    def __iter__(self) -> Iterator[Self]:
        while self._again:
            self._again = False
            yield self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, LOSSES):
            return False
        granted, self._granted = self._granted, None
        self._again = error is granted or self._grant(error, "the run starts again from step")
        return self._again

    def keeps_engines(self, error: BaseException) -> bool:
        """Whether only the workers that train and score start again after an error, inside the same start:
        the first time after a checkpoint, unless no engine is left.

        If that fails too, `error` leaves the context, and the whole run starts again.
        """
        if not isinstance(error, LOSSES) or isinstance(error, EngineLostError) or self._next_try() > 1:
            return False
        may = self._grant(error, "trainer and reward start again from step")
        self._granted = error if may else None
        return may

    def _grant(self, error: HybridRLError, what: str) -> bool:
        """Count another start after an error, and say so; False: there were too many."""
        saved = self._saved()
        self._tries = self._next_try()
        if saved is None or self._tries > self._most:
            return False
        self._saved_before = saved
        self.resume = "required"
        self._failed_at = max(self._failed_at, last_step(self._files.folder))
        self._sampled_for = max(self._sampled_for, last_done(self._files.folder) + 1)
        left = counted(self._most - self._tries, "further start")
        self._say(f"{what} {saved}, {left} without a new one: {error.what}")
        return True

    def _next_try(self) -> int:
        """Which start in a row without a new checkpoint the next one is."""
        return 1 if self._saved() != self._saved_before else self._tries + 1

    def left_of(self, faults: Iterable[Fault]) -> list[Fault]:
        """The faults that a further start suffers: those of steps after the one that failed."""
        return [fault for fault in faults if fault.step > self._reached(fault.phase)]

    def _reached(self, phase: str) -> int:
        return self._sampled_for if phase in ("generate", "reward") else self._failed_at

    def _saved(self) -> int | None:
        """Step of the newest checkpoint; None: there is none."""
        found = whole_checkpoints(self._files.checkpoints)
        return found[-1].step if found else None
