"""Named errors. The command line prints them as three lines (what, where and why, the change) and picks the
exit code.

Every class survives a trip through pickle, because most of them are raised inside a Ray actor.
"""

from collections.abc import Sequence


class HybridRLError(Exception):
    """A failure with a message for a person. `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        """
        Args:
            what: one line, what is wrong, with both values where two disagree.
            where: the place a person can go to ("my.yaml:14", a path, a rank) and why it matters.
            fix: the one-line change.
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
    """A mistake of the user: refused before any work starts."""

    exit_code = 2


class ConfigError(UserError):
    """A config that cannot be run as written."""


class ConfigErrors(ConfigError):
    """Several mistakes of one config, shown at once: a person repairs it in one go."""

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
    """Marks an error about a folder or file that this machine lacks: a run elsewhere may find it there."""


class AbsentDataError(DataError, Absence):
    """There is no data file at a path that a config names."""


class AbsentModelError(ModelError, Absence):
    """There is no model folder at a path that a config names."""


class RewardError(UserError):
    """A reward that cannot be loaded, raises, or returns something that is not a finite number."""


class UserCodeError(UserError):
    """Code that a config names by module:Name, and that does not import, raises, or ends the process."""


class RunFolderError(UserError):
    """A run folder that already holds a run, or a resume from one that does not."""


class CheckpointError(UserError):
    """A checkpoint that is not whole, or that does not fit what is being resumed."""


class ResourceError(UserError):
    """The machine lacks what the run needs: memory, a port, a device."""


class ColumnError(HybridRLError):
    """A column that nobody declared, that is not as it was declared, or that is needed and not there."""


class LayoutError(HybridRLError):
    """A layout that cannot be realised on the mesh it was asked for."""


class EngineError(HybridRLError):
    """A rollout engine that failed, or that was asked to serve while it must not."""


class SwapError(HybridRLError):
    """A weight swap that did not commit; engines it touched do not serve."""


class VersionError(HybridRLError):
    """A policy version that is not the next one: a call was lost or repeated."""


class NonFiniteError(HybridRLError):
    """A loss or gradient norm that is inf or NaN; parameters are unchanged."""


class GuardError(HybridRLError):
    """A step that is certainly wrong, though every number is finite; parameters are unchanged."""


class WorkerError(HybridRLError):
    """A worker process that died."""


class DeadlineError(HybridRLError):
    """Something took longer than its deadline."""

    exit_code = 3


def refuse(errors: Sequence[HybridRLError]) -> None:
    """Raise what was found; nothing when nothing was.

    Raises:
        ConfigErrors: there are errors.
    """
    if errors:
        raise ConfigErrors(errors)
