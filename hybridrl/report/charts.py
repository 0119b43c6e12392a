"""Pictures of a page as SVG: curves with bands, lanes of phases, stacked shares.

A picture is drawn here, so that a page shows it without scripts. Each has its values in data attributes, from
which the page's script reads them out under the pointer and the arrow keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hybridrl.observe.units import duration
from hybridrl.report.health import Band
from hybridrl.report.series import Series, Thinned, number
from hybridrl.report.text import escaped

WIDTH, HEIGHT = 320.0, 120.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 4.0, 316.0, 6.0, 114.0

COLOURS = 10
"""Colours of the page, as classes c0 to c9."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps steps and values to places in a picture."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: np.ndarray) -> np.ndarray:
        low, high = self.steps
        return _LEFT + (_RIGHT - _LEFT) * (step - low) / ((high - low) or 1.0)

    def y(self, value: np.ndarray) -> np.ndarray:
        low, high = self.values
        share = (np.clip(value, low, high) - low) / ((high - low) or 1.0)
        return _BOTTOM - (_BOTTOM - _TOP) * share


@dataclass(frozen=True, slots=True)
class Expected:
    """Limits of a curve of other runs. Shape letter P: points."""

    step_P: np.ndarray
    low_P: np.ndarray
    high_P: np.ndarray


def curve(
    title: str,
    series: Series,
    *,
    band: Band | None = None,
    more: Series | None = None,
    expected: Expected | None = None,
) -> str:
    """A curve of the mean over neighbouring steps, the range of the values around it, and the health band.

    Args:
        more: a second curve of the same unit, with points, as held-out evaluations.
        expected: where the curve of a run of the same config lies; only the steps that the run has are drawn.
    """
    thin, others = series.thinned, [] if more is None else [more.thinned]
    scale = _scale([thin, *others], band)
    parts = [
        _expected(scale, expected) if expected else "",
        _band(scale, band) if band else "",
        _area(scale, thin) if len(series) > len(thin.step_B) else "",
        f'<path class="line" d="{_path(scale.x(thin.step_B), scale.y(thin.mean_B))}"/>',
        *(_points(scale, other) for other in others),
    ]
    low, high = number(scale.values[0]), number(scale.values[1])
    label = f"{title}: {_told(series)}; the axis goes from {low} to {high}"
    svg = _svg(label, "".join(parts), _data(thin, others))
    return (
        f'<div class="plot">{svg}<span class="axis top" aria-hidden="true">{high}</span>'
        f'<span class="axis bottom" aria-hidden="true">{low}</span></div>'
    )


def lanes(phases: Mapping[str, Series], step_s: Series) -> str:
    """One lane for each phase: its seconds in each step, all on one scale, because phases may overlap."""
    highest = max(float(series.thinned.mean_B.max()) for series in [*phases.values(), step_s])
    steps = (float(step_s.step_S[0]), float(step_s.step_S[-1]))
    return "".join(
        _lane(name, series, Scale(steps, (0.0, highest or 1.0)), i % COLOURS)
        for i, (name, series) in enumerate([("whole step", step_s), *phases.items()])
    )


def stacked(title: str, shares: Mapping[str, Series], colours: Mapping[str, int]) -> str:
    """Shares that sum to 1, one area on the other, in the order given."""
    step_B = next(iter(shares.values())).thinned.step_B
    scale = Scale((float(step_B[0]), float(step_B[-1])), (0.0, 1.0))
    below, areas = np.zeros(len(step_B)), []
    for name, series in shares.items():
        above = below + series.thinned.mean_B
        areas.append(f'<path class="fill c{colours[name]}" d="{_between(scale, step_B, below, above)}"/>')
        below = above
    values = {name: series.thinned for name, series in shares.items()}
    told = ", ".join(f"{name} {series.value_S.mean():.0%}" for name, series in shares.items())
    return f'<div class="plot">{_svg(f"{title}: {told}", "".join(areas), _named(step_B, values))}</div>'


def _lane(name: str, series: Series, scale: Scale, colour: int) -> str:
    thin = series.thinned
    area = _between(scale, thin.step_B, np.zeros(len(thin.step_B)), thin.mean_B)
    label = f"{name}: {_told(series)}, in seconds"
    svg = _svg(label, f'<path class="fill c{colour}" d="{area}"/>', _data(thin, []))
    mean_s = duration(float(series.value_S.mean()))
    return (
        f'<div class="lane"><span class="name">{escaped(name)}</span>'
        f'<div class="plot">{svg}</div><span class="value">{mean_s}</span></div>'
    )


def _scale(drawn: Sequence[Thinned], band: Band | None) -> Scale:
    """The range of everything drawn, and of the limit of the band that is nearest to it."""
    low = min(float(thin.low_B.min()) for thin in drawn)
    high = max(float(thin.high_B.max()) for thin in drawn)
    if band is not None:
        room = (high - low) or abs(high) or 1.0
        limits = [limit for limit in (band.low, band.high) if low - room <= limit <= high + room]
        low, high = min([low, *limits]), max([high, *limits])
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    first = min(float(thin.step_B[0]) for thin in drawn)
    return Scale((first, max(float(thin.step_B[-1]) for thin in drawn)), (low, high))


def _svg(label: str, body: str, data: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" tabindex="0" '
        f'aria-label="{escaped(label)}" {data}>{body}<line class="cursor" y1="0" y2="{HEIGHT:g}"/></svg>'
    )


def _told(series: Series) -> str:
    first, last = number(float(series.value_S[0])), number(series.last)
    return f"{first} at step {series.step_S[0]}, {last} at step {series.step_S[-1]}"


def _data(thin: Thinned, others: Sequence[Thinned]) -> str:
    return " ".join([_values("", thin), *(_values("-more", other) for other in others)])


def _values(suffix: str, thin: Thinned) -> str:
    steps = ",".join(map(str, thin.step_B.tolist()))
    values = ",".join(f"{value:.4g}" for value in thin.mean_B.tolist())
    return f'data-steps{suffix}="{steps}" data-values{suffix}="{values}"'


def _named(step_B: np.ndarray, values: Mapping[str, Thinned]) -> str:
    rows = ";".join(
        f"{escaped(name)}:" + ",".join(f"{v:.3g}" for v in thin.mean_B.tolist())
        for name, thin in values.items()
    )
    return f'data-steps="{",".join(map(str, step_B.tolist()))}" data-rows="{rows}"'


def _band(scale: Scale, band: Band) -> str:
    top, bottom = scale.y(
        np.array([min(band.high, scale.values[1]), max(band.low, scale.values[0])])
    ).tolist()
    height = max(bottom - top, 1.5)
    return f'<rect class="band" x="0" y="{top:.1f}" width="{WIDTH:g}" height="{height:.1f}"/>'


def _expected(scale: Scale, expected: Expected) -> str:
    first, last = scale.steps
    step_P = np.unique(np.clip(expected.step_P, first, last))
    low_P = np.interp(step_P, expected.step_P, expected.low_P)
    high_P = np.interp(step_P, expected.step_P, expected.high_P)
    return f'<path class="expected" d="{_between(scale, step_P, low_P, high_P)}"/>'


def _area(scale: Scale, thin: Thinned) -> str:
    return f'<path class="range" d="{_between(scale, thin.step_B, thin.low_B, thin.high_B)}"/>'


def _between(scale: Scale, step_B: np.ndarray, low_B: np.ndarray, high_B: np.ndarray) -> str:
    x = scale.x(step_B.astype(float))
    if len(x) == 1:  # one step has no width of its own
        x, low_B, high_B = np.array([_LEFT, _RIGHT]), low_B.repeat(2), high_B.repeat(2)
    back = slice(None, None, -1)
    places = [*_pairs(x, scale.y(high_B)), *_pairs(x[back], scale.y(low_B)[back])]
    return "M" + "L".join(places) + "Z"


def _path(x: np.ndarray, y: np.ndarray) -> str:
    places = list(_pairs(x, y))
    return "M" + "L".join(places if len(places) > 1 else [places[0], places[0]])


def _points(scale: Scale, thin: Thinned) -> str:
    x, y = scale.x(thin.step_B.astype(float)), scale.y(thin.mean_B)
    dots = "".join(f"M{place}h0" for place in _pairs(x, y))
    return f'<path class="line more" d="{_path(x, y)}"/><path class="dots" d="{dots}"/>'


def _pairs(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    return (f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
