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
        self._error: float | None = None
        self._recomputed_s = 0.0

    def turn(self, cause: Cause) -> None:
        """Say what the engine does from now on."""
        if cause != self._cause:
            self._add_time()
            self._cause = cause

    def count(self, *, sampled: int = 0, aborted: int = 0, recomputed: int = 0) -> None:
        """Add tokens."""
        for name, number in (("sampled", sampled), ("aborted", aborted), ("recomputed", recomputed)):
            self._tokens[f"{name}_tokens"] = self._tokens.get(f"{name}_tokens", 0) + number

    def recompute(self, total_s: float) -> None:
        """Note the seconds that the engine has spent until now on computing caches again."""
        self._seconds["recomputing_s"] = (
            self._seconds.get("recomputing_s", 0.0) + total_s - self._recomputed_s
        )
        self._recomputed_s = total_s

    def compare(self, error: float) -> None:
        """Note the error of a token that was sampled with a kept cache."""
        self._error = max(error, self._error or 0.0)

    def take(self) -> Usage:
        """What was added since the last call."""
        self._add_time()
        found = Usage(**self._seconds, **self._tokens, kept_cache_error=self._error)
        self._seconds, self._tokens, self._error = {}, {}, None
        return found

    def _add_time(self) -> None:
        now = self._now()
        self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + now - self._since
        self._since = now


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over engines."""
    usages = list(usages)
    errors = [usage.kept_cache_error for usage in usages if usage.kept_cache_error is not None]
    names = [field.name for field in fields(Usage) if field.name != "kept_cache_error"]
    sums = {name: sum(getattr(usage, name) for usage in usages) for name in names}
    return replace(Usage(kept_cache_error=max(errors, default=None)), **sums)
