"""What a judge replied about an answer, on its way to the rule that asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REPLIES = "__replies__"
"""Column that is added to a row: the key of a rule -> the reply of its judge."""


class UnjudgedError(Exception):
    """A judge failed for an answer, which has no reward therefore. The text begins with the kind of
    failure, as in "timeout: ..."."""


class NotAskedError(Exception):
    """No judge was asked about an answer: a check tries the rules alone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a judge about one answer."""

    value: Any = None
    """What it said: a text, or a value as JSON has them."""

    failure: str = ""
    """Why there is none, beginning with the kind of failure; "": there is one."""

    def unwrap(self) -> Any:
        """
        Raises:
            UnjudgedError: the judge failed.
        """
        if self.failure:
            raise UnjudgedError(self.failure)
        return self.value


def reply_to(row: Mapping[str, Any], key: str) -> Any:
    """What the judge of a rule said about the answer to a row.

    Raises:
        UnjudgedError: the judge failed.
        NotAskedError: it was not asked.
    """
    if REPLIES not in row:
        raise NotAskedError("a judge replies to answers that are scored in a run")
    return row[REPLIES][key].unwrap()


def with_replies(row: Mapping[str, Any], replies: Mapping[str, Reply]) -> Mapping[str, Any]:
    return {**row, REPLIES: replies}


def failure_kind(failure: str) -> str:
    """The kind of a failure, for metrics: the word before its colon."""
    return failure.partition(":")[0]
