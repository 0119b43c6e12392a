"""Series of metrics: values by step, thinned out so that a page of a long run stays small."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hybridrl.observe.record import Kind, Record

MOST_POINTS = 240
"""Points of a curve; a picture has no more columns to show them in."""


@dataclass(frozen=True)
class Series:
    """The finite values of one metric.

    Shape letters: S steps that have the metric.
    """

    name: str
    step_S: np.ndarray
    value_S: np.ndarray
    num_broken: int = 0
    """Steps at which it was not a finite number."""

    @property
    def last(self) -> float:
        return float(self.value_S[-1])

    def __len__(self) -> int:
        return len(self.step_S)

    @cached_property
    def thinned(self) -> "Thinned":
        """At most MOST_POINTS buckets of neighbouring steps."""
        edges = np.unique(np.linspace(0, len(self), min(len(self), MOST_POINTS) + 1).astype(int))[:-1]
        counts = np.diff([*edges, len(self)])
        return Thinned(
            self.step_S[edges + counts - 1],
            np.add.reduceat(self.value_S, edges) / counts,
            np.minimum.reduceat(self.value_S, edges),
            np.maximum.reduceat(self.value_S, edges),
        )


@dataclass(frozen=True, slots=True)
class Thinned:
    """Shape letter B: buckets of neighbouring steps."""

    step_B: np.ndarray
    """The last step of each bucket."""

    mean_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray


def series_of(records: Iterable[Record], kind: Kind = "step") -> dict[str, Series]:
    """Every metric of a kind of record, in the order in which they first appear."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for record in records:
        if record.kind == kind:
            for name, value in record.metrics.items():
                if name not in values:
                    steps[name], values[name] = [], []
                steps[name].append(record.step)
                values[name].append(value)
    return {name: found for name in values if (found := _finite(name, steps[name], values[name])) is not None}


def _finite(name: str, steps: Sequence[int], values: Sequence[float]) -> Series | None:
    value_S = np.array(values, np.float64)
    finite_S = np.isfinite(value_S)
    if not finite_S.any():
        return None
    return Series(name, np.array(steps)[finite_S], value_S[finite_S], int((~finite_S).sum()))


def total(series: Mapping[str, Series], name: str) -> float:
    """The sum of a metric over all steps; 0 if there is none."""
    return float(series[name].value_S.sum()) if name in series else 0.0


def number(value: float) -> str:
    """Four significant digits, for a person."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return text
