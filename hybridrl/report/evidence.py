"""What a rule of advice looks at: statistics of metrics over windows of a run, with a limit each.

The windows are the first and the last steps: a third of the run each, and no more than ten steps. A run of
fewer than nine steps has no evidence yet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from hybridrl.report.series import Series, number

Of = Literal["late", "ratio", "change", "share", "correlation"]
"""late: mean of the last window. ratio and change: that over, and minus, the mean of the first window. share:
the late mean over that of another metric. correlation: with another metric, over all steps."""

_FEWEST_STEPS, _WINDOWS, _LONGEST = 9, 3, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """It holds if the statistic is above, or below, its limit."""

    metric: str
    """A name, or a pattern as in reward/*format*/mean: one metric that matches is enough."""

    of: Of = "late"
    above: float | None = None
    below: float | None = None
    other: str = ""
    """The second metric of a share or a correlation."""

    def evidence(self, steps: Mapping[str, Series]) -> str | None:
        """A clause that says what was found; None: the condition does not hold, or the run has no such
        metric."""
        for name in (name for name in steps if fnmatchcase(name, self.metric)):
            series, other = steps[name], steps.get(self.other)
            if len(series) < _FEWEST_STEPS or (self.other and (other is None or len(other) != len(series))):
                continue
            found = _STATISTICS[self.of](series, other)
            if found is not None and self._holds(found):
                return _told(self, series, found)
        return None

    def _holds(self, found: float) -> bool:
        return (self.above is not None and found > self.above) or (
            self.below is not None and found < self.below
        )


def windows(series: Series) -> tuple[float, float]:
    """Mean of the first and of the last window."""
    size = window(series)
    return float(series.value_S[:size].mean()), float(series.value_S[-size:].mean())


def window(series: Series) -> int:
    return min(_LONGEST, len(series) // _WINDOWS)


def _late(series: Series, other: Series | None) -> float | None:
    return windows(series)[1]


def _ratio(series: Series, other: Series | None) -> float | None:
    early, late = windows(series)
    return late / early if early > 0 else None


def _change(series: Series, other: Series | None) -> float | None:
    early, late = windows(series)
    return late - early


def _share(series: Series, other: Series | None) -> float | None:
    whole = 0.0 if other is None else windows(other)[1]
    return windows(series)[1] / whole if whole > 0 else None


def _correlation(series: Series, other: Series | None) -> float | None:
    if other is None or not series.value_S.std() or not other.value_S.std():
        return None
    return float(np.corrcoef(series.value_S, other.value_S)[0, 1])


_STATISTICS: Mapping[Of, Callable[[Series, Series | None], float | None]] = {
    "late": _late,
    "ratio": _ratio,
    "change": _change,
    "share": _share,
    "correlation": _correlation,
}


def _told(condition: Condition, series: Series, found: float) -> str:
    early, late = windows(series)
    name, last = series.name, f"in the last {window(series)} steps"
    if condition.of == "late":
        return f"{name} is {number(late)} {last}"
    if condition.of == "share":
        return f"{name} is {found:.0%} of {condition.other} {last}"
    if condition.of == "correlation":
        return f"{name} and {condition.other} have correlation {found:.2f}"
    verb = "rose" if late > early else "fell" if late < early else "stayed"
    moved = f"at {number(late)}" if verb == "stayed" else f"from {number(early)} to {number(late)}"
    return f"{name} {verb} {moved} in {int(series.step_S[-1] - series.step_S[0]) + 1} steps"
