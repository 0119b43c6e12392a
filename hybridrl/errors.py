"""Named errors. The command line prints them as three lines (what, where and why, the fix) and chooses the
exit code.

Every class can be pickled, because most of them are raised in a Ray actor.
"""

from collections.abc import Sequence


class HybridRLError(Exception):
    """A failure with a message for the user. `exit_code` is the exit code of the command line."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        """
        Args:
            what: one line that says what is wrong, with both values if two disagree.
            where: the place to look at ("my.yaml:14", a path, a rank) and why it matters.
            fix: the one-line fix.
        """
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def __str__(self) -> str:
        place = f"  ({self.where})" if self.where else ""
        change = f": {self.fix}" if self.fix else ""
        return f"{self.what}{place}{change}"


def _rebuild(kind: type[HybridRLError], what: str, where: str, fix: str) -> HybridRLError:
    return kind(what, where=where, fix=fix)


class UserError(HybridRLError):
    """A mistake of the user, which is refused before any work starts."""

    exit_code = 2


class ConfigError(UserError):
    """A config that cannot be run as written."""


class ConfigErrors(ConfigError):
    """Several mistakes of one config, shown together so that they can be fixed together."""

    def __init__(self, errors: Sequence[HybridRLError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)

    def __reduce__(self) -> tuple:
        return type(self), (self.errors,)


class DataError(UserError):
    """Prompt data that is missing, empty or lacks a column."""


class ModelError(UserError):
    """A model that cannot be read, or that no model table describes."""


class Absence:
    """Marks an error about a missing folder or file, which may exist on the machine that runs the config."""


class AbsentDataError(DataError, Absence):
    """A data file that a config names and that does not exist."""


class AbsentModelError(ModelError, Absence):
    """A model folder that a config names and that does not exist."""


class RewardError(UserError):
    """A reward that cannot be loaded, raises, or returns something that is not a finite number."""


class UserCodeError(UserError):
    """Code that a config names as module:Name and that cannot be imported, raises, or ends the process."""


class RunFolderError(UserError):
    """A run folder that already holds a run, or a resume from a folder without one."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete or damaged, or does not fit the run that resumes from it."""


class ResourceError(UserError):
    """The machine lacks what the run needs: memory, a port, a device."""


class SandboxError(HybridRLError):
    """A box that could not be started, or that ended or answered nonsense during a call."""


class ColumnError(HybridRLError):
    """A column that is not declared, does not match its declaration, or is needed and missing."""


class LayoutError(HybridRLError):
    """A parallel layout that the model does not support."""


class EngineError(HybridRLError):
    """A rollout engine that failed, or a request to an engine that must not serve."""


class EngineLostError(EngineError):
    """An engine that ended, does not answer, or has other weights than it should; a run replaces it."""


class SwapError(HybridRLError):
    """A weight swap that was not committed; its engines do not serve."""


class VersionError(HybridRLError):
    """A policy version that is not the next one: a call was lost or repeated."""


class NonFiniteError(HybridRLError):
    """A loss or gradient norm that is inf or NaN; parameters are unchanged."""


class GuardError(HybridRLError):
    """A step that is certainly wrong although every number is finite; parameters are unchanged."""


class WorkerError(HybridRLError):
    """A worker process that died."""


class DeadlineError(HybridRLError):
    """An operation that took longer than its deadline."""

    exit_code = 3


def refuse(errors: Sequence[HybridRLError]) -> None:
    """Raise all errors together, if there are any.

    Raises:
        ConfigErrors: `errors` is not empty.
    """
    if errors:
        raise ConfigErrors(errors)
