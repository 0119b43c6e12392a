"""What an engine does with its time: generating, paused or idle."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Literal

from hybridrl.types import Usage

Cause = Literal["generating_s", "paused_s", "idle_s"]


class UsageClock:
    """Adds up the seconds of one engine by cause, and the tokens that its owner counts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since, self._cause = now(), "idle_s"
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}

    def turn(self, cause: Cause) -> None:
        """Say what the engine does from now on."""
        if cause != self._cause:
            self._add_time()
            self._cause = cause

    def count(self, *, sampled: int = 0, aborted: int = 0, recomputed: int = 0) -> None:
        """Add tokens."""
        for name, number in (("sampled", sampled), ("aborted", aborted), ("recomputed", recomputed)):
            self._tokens[f"{name}_tokens"] = self._tokens.get(f"{name}_tokens", 0) + number

    def take(self) -> Usage:
        """What was added since the last call."""
        self._add_time()
        found = Usage(**self._seconds, **self._tokens)
        self._seconds, self._tokens = {}, {}
        return found

    def _add_time(self) -> None:
        now = self._now()
        self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + now - self._since
        self._since = now


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over engines."""
    usages = list(usages)
    names = [field.name for field in fields(Usage)]
    return replace(Usage(), **{name: sum(getattr(usage, name) for usage in usages) for name in names})
