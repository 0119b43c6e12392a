"""What an engine does with its time: generating, paused or idle."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Literal

from hybridrl.types import Usage

Cause = Literal["generating_s", "paused_s", "idle_s"]


class UsageClock:
    """Adds up the seconds of one engine by cause, and the tokens that its owner counts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since, self._cause = now(), "idle_s"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tokens: Counter[str] = Counter()
        self._error: float | None = None
        self._recomputed_s = 0.0
        self._sums: defaultdict[str, float] = defaultdict(float)

    def turn(self, cause: Cause) -> None:
        """Say what the engine does from now on."""
        if cause != self._cause:
            self._add_time()
            self._cause = cause

    def count(self, *, sampled: int = 0, aborted: int = 0, recomputed: int = 0) -> None:
        """Add tokens."""
        self._tokens.update(sampled_tokens=sampled, aborted_tokens=aborted, recomputed_tokens=recomputed)

    def add(self, sums: Mapping[str, float]) -> None:
        """Add to what episodes count, by name."""
        for name, value in sums.items():
            self._sums[name] += value

    def recompute(self, total_s: float) -> None:
        """Note the seconds that the engine has spent until now on computing caches again."""
        self._seconds["recomputing_s"] += total_s - self._recomputed_s
        self._recomputed_s = total_s

    def compare(self, error: float) -> None:
        """Note the error of a token that was sampled with a kept cache."""
        self._error = max(error, self._error or 0.0)

    def take(self) -> Usage:
        """What was added since the last call."""
        self._add_time()
        found = Usage(**self._seconds, **self._tokens, kept_cache_error=self._error, sums=dict(self._sums))
        self._sums.clear()
        self._seconds.clear()
        self._tokens.clear()
        self._error = None
        return found

    def _add_time(self) -> None:
        now = self._now()
        self._seconds[self._cause] += now - self._since
        self._since = now


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over engines."""
    usages = list(usages)
    errors = [usage.kept_cache_error for usage in usages if usage.kept_cache_error is not None]
    others = ("kept_cache_error", "sums")
    names = [field.name for field in fields(Usage) if field.name not in others]
    added = {name: sum(getattr(usage, name) for usage in usages) for name in names}
    sums: defaultdict[str, float] = defaultdict(float)
    for usage in usages:
        for name, value in usage.sums.items():
            sums[name] += value
    return Usage(**added, kept_cache_error=max(errors, default=None), sums=dict(sums))
