"""When a run ends because its environments fail too often."""

from collections.abc import Sequence

from hybridrl.environments.base import EnvironmentFailedError

MOST_FAILURES = 0.25
"""Share of the episodes of a step, or of an evaluation, whose environments may fail."""


def refuse_failures(failures: Sequence[str], *, played: int, what: str) -> None:
    """
    Args:
        failures: what happened to each episode whose environment failed three times.
        played: number of the other episodes.
        what: what the episodes are of, as "a step".

    Raises:
        EnvironmentFailedError: too many failed; the message has the first cause.
    """
    if len(failures) > MOST_FAILURES * (played + len(failures)):
        raise EnvironmentFailedError(
            f"{len(failures)} of {played + len(failures)} episodes of {what} failed, each of them three "
            f"times; the first: {failures[0]}",
            where="environment",
            fix="hybridrl environment check, with this config",
        )
