"""The table that a run prints: which columns fit, which steps get a row, and how a cell is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybridrl.observe.metrics import heldout_reward
from hybridrl.observe.record import Record
from hybridrl.observe.units import brief

ETA = "eta_s"
"""Metric that a row of a log has in addition: seconds until the run ends."""

_INDENT = 2
_ROWS_PER_RUN = 20
_LONGEST_SILENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    width: int
    cell: Callable[[Mapping[str, float]], str]
    dropped: int = 0
    """Order in which columns are dropped on a narrow screen; 0: never."""

    log_only: bool = False
    """Whether only a log has the column; a live screen shows the value in its last lines."""


def _number(name: str, text: str) -> Callable[[Mapping[str, float]], str]:
    return lambda metrics: _short(metrics[name], text) if name in metrics else ""


def _short(value: float, text: str) -> str:
    """The number in the given format, or with fewer digits if that takes more than seven characters."""
    return next((t for t in (format(value, text), f"{value:.0f}") if len(t) <= 7), f"{value:.0e}")


def _seconds(*names: str) -> Callable[[Mapping[str, float]], str]:
    return lambda metrics: (
        brief(sum(metrics.get(n, 0.0) for n in names)) if any(n in metrics for n in names) else ""
    )


def _heldout(metrics: Mapping[str, float]) -> str:
    reward = heldout_reward(metrics)
    return "" if reward is None else _short(reward, ".2f")


COLUMNS = (
    Column("step", 6, _number("training/global_step", ".0f")),
    Column("reward", 7, _number("critic/score/mean", ".2f")),
    Column("held-out", 8, _heldout),
    Column("length", 7, _number("response_length/mean", ".1f"), dropped=6),
    Column("entropy", 7, _number("actor/entropy", ".2f"), dropped=4),
    Column("lr", 7, _number("actor/lr", ".1e"), dropped=1),
    Column("gen", 6, _seconds("timing_s/gen")),
    Column("used", 6, _number("goodput/with_gradient", ".0%"), dropped=2),
    Column("train", 6, _seconds("timing_s/old_log_prob", "timing_s/update_actor")),
    Column("swap", 6, _seconds("sync/time_s"), dropped=3),
    Column("step time", 9, _seconds("timing_s/step"), dropped=5),
    Column("eta", 6, _seconds(ETA), log_only=True),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns that fit a width, and the space between them."""

    columns: tuple[Column, ...]
    gap: int

    @classmethod
    def fit(cls, width: int, *, live: bool) -> "Layout":
        columns = [c for c in COLUMNS if not (live and c.log_only)]
        while _width(columns, 2) > width and any(c.dropped for c in columns):
            columns.remove(min((c for c in columns if c.dropped), key=lambda c: c.dropped))
        return cls(tuple(columns), 3 if _width(columns, 3) <= width else 2)

    @property
    def header(self) -> str:
        return self._line([c.title for c in self.columns])

    def row(self, metrics: Mapping[str, float]) -> str:
        return self._line([c.cell(metrics) for c in self.columns])

    def _line(self, cells: Sequence[str]) -> str:
        gap = " " * self.gap
        return " " * _INDENT + gap.join(
            text.rjust(c.width) for c, text in zip(self.columns, cells, strict=True)
        )


def _width(columns: Sequence[Column], gap: int) -> int:
    return _INDENT + sum(c.width for c in columns) + gap * (len(columns) - 1)


class Rows:
    """Decides which policy updates get a row.

    A run gets about twenty rows, and one more whenever the last is a minute old; the first step, the last,
    and those that were evaluated always get one. An evaluation comes after its step, so a row is due with the
    next step.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._every = steps, row_every(steps)
        self._waiting: Record | None = None
        self._shown_at_s = float("-inf")

    @property
    def waiting(self) -> Mapping[str, float] | None:
        """The row that is not due yet, which a live view shows below the others."""
        waiting = self._waiting  # read once: another thread may draw while a step comes in
        return waiting.metrics if waiting else None

    def step(self, record: Record) -> list[Mapping[str, float]]:
        """Add a step; returns the rows that are due now."""
        due = self._due()
        self._waiting = record
        return due

    def evaluation(self, record: Record) -> list[Mapping[str, float]]:
        """Add an evaluation; returns its row, with the metrics of its step if that has come."""
        step = self._waiting
        if step is None or step.step != record.step:
            return [*self._due(), {"training/global_step": float(record.step), **record.metrics}]
        self._waiting = None
        self._shown_at_s = step.time
        return [{**record.metrics, **step.metrics}]

    def last(self) -> list[Mapping[str, float]]:
        """The rows that are left when the run ends: its last step always gets one."""
        left, self._waiting = self._waiting, None
        return [left.metrics] if left else []

    def _due(self) -> list[Mapping[str, float]]:
        record, self._waiting = self._waiting, None
        if record is None:
            return []
        old = record.time - self._shown_at_s >= _LONGEST_SILENCE_S
        if not (old or record.step % self._every == 0 or record.step == self._steps):
            return []
        self._shown_at_s = record.time
        return [record.metrics]


def row_every(steps: int) -> int:
    """Steps between rows: 1, 2 or 5 times a power of ten, so that a run has about twenty rows."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if steps <= _ROWS_PER_RUN * factor * power:
                return factor * power
        power *= 10
