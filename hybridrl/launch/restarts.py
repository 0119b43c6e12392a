"""Starts a run again from its last checkpoint when its workers died or hung, without being asked."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from hybridrl.errors import DeadlineError, EngineLostError, WorkerError
from hybridrl.faults import Fault
from hybridrl.launch.shape import Resume, RunFiles
from hybridrl.observe.doing import last_done, last_step
from hybridrl.trainer.checkpoints import whole_checkpoints
from hybridrl.wording import counted

_LOSSES = (WorkerError, DeadlineError, EngineLostError)


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
        if not isinstance(error, _LOSSES):
            return False
        saved = self._saved()
        self._tries = 1 if saved != self._saved_before else self._tries + 1
        self._again = saved is not None and self._tries <= self._most
        if self._again:
            self._saved_before = saved
            self.resume = "required"
            self._failed_at = max(self._failed_at, last_step(self._files.folder))
            self._sampled_for = max(self._sampled_for, last_done(self._files.folder) + 1)
            left = counted(self._most - self._tries, "further start")
            self._say(f"the run starts again from step {saved}, {left} without a new one: {error.what}")
        return self._again

    def left_of(self, faults: Iterable[Fault]) -> list[Fault]:
        """The faults that a further start suffers: those of steps after the one that failed."""
        return [fault for fault in faults if fault.step > self._reached(fault.phase)]

    def _reached(self, phase: str) -> int:
        return self._sampled_for if phase in ("generate", "reward") else self._failed_at

    def _saved(self) -> int | None:
        """Step of the newest checkpoint; None: there is none."""
        found = whole_checkpoints(self._files.checkpoints)
        return found[-1].step if found else None
