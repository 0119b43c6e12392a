"""Draws the curve of the reward or the loss from metrics.jsonl alone, so it can be drawn after a crash
too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybridrl.observe.jsonl import read
from hybridrl.observe.metrics import heldout_reward
from hybridrl.observe.record import Record

_TRAIN, _HELDOUT, _INK, _GRID = "#2a78d6", "#c2410c", "#222222", "#e4e4e4"
_WINDOWS_PER_RUN = 15


@dataclass(frozen=True, slots=True)
class Curve:
    """What a picture shows."""

    file: str
    metric: str
    """Metric of every step."""

    heldout: Callable[[Mapping[str, float]], float | None]
    """Computes the held-out value from the metrics of an evaluation; None: they have none."""

    axis: str
    steps: str


REWARD = Curve("reward.png", "critic/score/mean", heldout_reward, "mean reward", "step (policy updates)")
LOSS = Curve("loss.png", "train/loss", lambda metrics: metrics.get("val/loss"), "loss", "step (updates)")


def draw(folder: Path) -> Path | None:
    """Write the picture of the rewards or of the losses into a run folder; None if the run has no step yet.

    It costs a second, for the import of matplotlib and the picture, so it is not for the inside of a step.
    """
    records = read(folder / "metrics.jsonl")
    curve = next((one for one in (REWARD, LOSS) if any(one.metric in r.metrics for r in records)), None)
    if curve is None:
        return None
    path = folder / curve.file
    figure(records, folder.name, curve).savefig(path, dpi=150)
    return path


def figure(records: Sequence[Record], title: str, curve: Curve = REWARD) -> Figure:
    """A picture of the metric of each step, its running mean ± one standard deviation, and the held-out
    evaluations."""
    steps = [(r.step, r.metrics[curve.metric]) for r in records if curve.metric in r.metrics]
    heldout = [(r.step, found) for r in records if (found := curve.heldout(r.metrics)) is not None]
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(picture)  # needs no window system, and shares no state with figures of the user
    axes = picture.add_subplot()
    _draw_training(axes, np.array(steps))
    if heldout:
        _draw_heldout(axes, np.array(heldout))
    _dress(axes, title, curve)
    return picture


def _draw_training(axes: Axes, points: np.ndarray) -> None:
    step, reward = points.T
    middle, spread = running(reward, max(3, len(reward) // _WINDOWS_PER_RUN))
    axes.fill_between(step, middle - spread, middle + spread, color=_TRAIN, alpha=0.15, linewidth=0)
    dots = {"color": _TRAIN, "alpha": 0.55, "markersize": 5, "markeredgewidth": 0}
    axes.plot(step, reward, ".", label="training, each step", **dots)
    axes.plot(step, middle, color=_TRAIN, linewidth=2, label="training, running mean ± std")


def _draw_heldout(axes: Axes, points: np.ndarray) -> None:
    axes.plot(*points.T, "o-", color=_HELDOUT, linewidth=1.5, markersize=5, label="held-out", zorder=3)
    _label(axes, points[0], (8, 6), "left")
    if len(points) > 1:
        _label(axes, points[-1], (-8, 8), "right")


def _label(axes: Axes, point: np.ndarray, offset: tuple[int, int], side: str) -> None:
    text = f"{point[1]:.2f}"
    axes.annotate(
        text, tuple(point), offset, textcoords="offset points", color=_HELDOUT, horizontalalignment=side
    )


def running(value_N: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the `window` values around each one (fewer at both ends)."""
    before, after = window // 2, window - window // 2
    parts = [value_N[max(0, i - before) : i + after] for i in range(len(value_N))]
    return np.array([p.mean() for p in parts]), np.array([p.std() for p in parts])


def _dress(axes: Axes, title: str, curve: Curve) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=12)
    axes.set_xlabel(curve.steps, color=_INK)
    axes.set_ylabel(curve.axis, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(frameon=False, loc="best", fontsize=9)
