"""Expected curves: bands over the seeds of a recipe, and whether a run stays inside.

A band ships with the package for recipes that run without a GPU. Another one is made of several runs that
differ in their seed alone:

    python -m hybridrl.report.band mine.json runs/mine-0 runs/mine-1 runs/mine-2
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybridrl import __version__
from hybridrl.config.files import atomic_write
from hybridrl.config.run_folder import MAY_CHANGE, MAY_CHANGE_BELOW
from hybridrl.errors import HybridRLError, UserError
from hybridrl.report.run_data import RunData, read_run
from hybridrl.report.series import Series, number
from hybridrl.report.student import quantile

HELDOUT = "held-out"
CURVES = (HELDOUT, "critic/score/mean", "actor/entropy", "response_length/mean", "rollout/zero_std")
"""Curves of a band. The verdict is by the first one that the band has; the others explain it."""

_CONFIDENCE = 0.98
"""A new seed lies between the limits of a step with this probability."""

_MOST_OUTSIDE = 0.1
"""Share of the points of a curve that chance may put outside; one point may be in any case, if it is not the
last."""

_MOST_POINTS = 40
_LEAST_RUNS = 3

_OF_RUN = {"run.seed", "model.path", "run.deterministic", "rollout.engine", "rollout.python"}
_IGNORED = (MAY_CHANGE - {"run.steps"}) | _OF_RUN
"""Keys in which a run may differ from those of a band: where it is, what it saves, its seed, and the engine,
whose probabilities are those of every other one."""

_LISTS = re.compile(r"\[\n[^\[\]{}]*\]")
"""A list over several lines of JSON."""

Side = Literal["below", "within", "above"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BandCurve:
    """Limits of one metric.

    Shape letters: P points, at steps that ascend.
    """

    step_P: Sequence[int]
    low_P: Sequence[float]
    mean_P: Sequence[float]
    high_P: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBand:
    recipe: str
    """Name of the runs, without their seed."""

    seeds: Sequence[int]
    version: str
    """Version of hybridrl that the runs were made with."""

    config: Mapping[str, str]
    """The keys that decide the result, as resolved.yaml writes them."""

    curves: Mapping[str, BandCurve]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A curve of a run against its band."""

    name: str
    side: Side
    value: float
    """The last of the run, at `step`."""

    step: int
    low: float
    high: float
    """Limits at this step."""

    share_outside: float


def make(runs: Sequence[RunData], recipe: str) -> RunBand:
    """The band of runs that differ in their seed alone.

    Raises:
        UserError: there are too few runs, two have the same seed, they differ in a key that decides the
            result, or they have no curve in common.
    """
    if len(runs) < _LEAST_RUNS:
        raise UserError(
            f"{len(runs)} runs make no band", fix=f"give {_LEAST_RUNS} or more, each of another seed"
        )
    seeds = [int(run.setting("run.seed") or 0) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"two of the runs have the same seed: {seeds}", fix="one run of each seed")
    config = deciding(runs[0])
    for run in runs[1:]:
        if different := differences(config, deciding(run)):
            what = "; ".join(different)
            raise UserError(f"{run.folder} is of another config than {runs[0].folder}: {what}")
    found = {name: [curve for run in runs if (curve := curve_of(run, name)) is not None] for name in CURVES}
    curves = {name: _limits(name, series) for name, series in found.items() if len(series) == len(runs)}
    if not curves:
        raise UserError("the runs have no curve in common", fix=f"runs with one of {', '.join(CURVES)}")
    return RunBand(recipe=recipe, seeds=sorted(seeds), version=__version__, config=config, curves=curves)


def check(run: RunData, band: RunBand) -> list[Checked]:
    """Every curve of a band that the run has; the first one is the verdict.

    Raises:
        UserError: the run has none of them.
    """
    found = [
        _checked(name, series, limits)
        for name, limits in band.curves.items()
        if (series := curve_of(run, name)) is not None
    ]
    if not found:
        raise UserError(f"{run.folder} has none of the curves of the band: {', '.join(band.curves)}")
    return found


def describe(one: Checked) -> str:
    """A curve and its limits in words."""
    most = f", {one.share_outside:.0%} of its points outside" if one.share_outside else ""
    return (
        f"{one.name} {number(one.value)} at step {one.step}, "
        f"expected {number(one.low)} to {number(one.high)}{most}"
    )


def band_of(run: RunData, file: Path | None = None) -> RunBand:
    """The band of a run's config.

    Args:
        file: a band to take; None: the one that ships with the package and has the same config.

    Raises:
        UserError: there is none; the message names what differs from the nearest one.
    """
    if file is not None:
        return read(file.read_text("utf-8"), str(file))
    own = deciding(run)
    known = shipped()
    for band in known:
        if not differences(band.config, own):
            return band
    nearest = min(known, key=lambda band: len(differences(band.config, own)))
    what = differences(nearest.config, own)
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    raise UserError(
        f"no expected curve fits the config of {run.folder}: from {nearest.recipe}, the nearest, it "
        f"differs in {'; '.join(what[:3])}{more}",
        where=f"expected curves are there for {', '.join(band.recipe for band in known)}",
        fix="--band FILE; python -m hybridrl.report.band FILE RUN... makes one of runs of several seeds",
    )


def shipped() -> list[RunBand]:
    """The bands of the package."""
    files = sorted(resources.files("hybridrl.report").joinpath("bands").iterdir(), key=lambda file: file.name)
    return [read(file.read_text("utf-8"), file.name) for file in files if file.name.endswith(".json")]


def read(text: str, name: str) -> RunBand:
    """
    Raises:
        UserError: the text is no band.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        curves = {name: BandCurve(**curve) for name, curve in found.pop("curves").items()}
        return RunBand(**found, curves=curves)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name} holds no expected curves: {error}", fix="make it anew") from error


def write(band: RunBand, path: Path) -> None:
    text = json.dumps(asdict(band), indent=1)
    atomic_write(path, _LISTS.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def deciding(run: RunData) -> dict[str, str]:
    """The keys of a run's config that decide its result, with their values."""
    return {
        one.key: one.value
        for one in run.settings
        if one.key not in _IGNORED and not one.key.startswith((*MAY_CHANGE_BELOW, "observe.", "cluster."))
    }


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Keys with other values. A key that only one of the two has differs only if it is not a new default."""
    return [
        f"{key} = {found[key]} instead of {value}"
        for key, value in expected.items()
        if key in found and found[key] != value
    ]


def curve_of(run: RunData, name: str) -> Series | None:
    return run.heldout if name == HELDOUT else run.steps.get(name)


def _limits(name: str, runs: Sequence[Series]) -> BandCurve:
    """Limits between which the curve of one more run lies, by Student's prediction interval of each step."""
    last = min(int(series.step_S[-1]) for series in runs)
    steps = [step for step in runs[0].step_S.tolist() if step <= last]
    if len(steps) > _MOST_POINTS:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)]
    value_RP = np.array([_at(_smooth(name, series), steps) for series in runs])
    mean_P, spread_P = value_RP.mean(0), value_RP.std(0, ddof=1)
    # Steps at which all seeds are equal would have no width: by chance, or because all have learnt the task.
    spread_P = np.maximum(spread_P, np.mean(spread_P) / 3)
    half_P = quantile(_CONFIDENCE, len(runs) - 1) * math.sqrt(1 + 1 / len(runs)) * spread_P
    lowest = 0.0 if all(series.value_S.min() >= 0.0 for series in runs) else -math.inf
    highest = 1.0 if _is_share(runs) else math.inf
    return BandCurve(
        step_P=steps,
        low_P=_rounded(np.maximum(mean_P - half_P, lowest)),
        mean_P=_rounded(mean_P),
        high_P=_rounded(np.minimum(mean_P + half_P, highest)),
    )


def _checked(name: str, series: Series, limits: BandCurve) -> Checked:
    """Compare a curve at the steps that it shares with the band."""
    within = (series.step_S >= limits.step_P[0]) & (series.step_S <= limits.step_P[-1])
    step_S = series.step_S[within] if within.any() else series.step_S[-1:]
    value_S = _at(_smooth(name, series), step_S)
    low_S, high_S = _at_steps(limits, limits.low_P, step_S), _at_steps(limits, limits.high_P, step_S)
    below, above = value_S < low_S - _ROUNDING, value_S > high_S + _ROUNDING
    num_outside = int((below | above).sum())
    ends_outside = bool(below[-1] or above[-1])
    side: Side = "within"
    if ends_outside or num_outside > max(1, _MOST_OUTSIDE * len(step_S)):
        decides = (below[-1], above[-1]) if ends_outside else (below.sum(), above.sum())
        side = "below" if decides[0] >= decides[1] else "above"
    return Checked(
        name=name,
        side=side,
        value=float(value_S[-1]),
        step=int(step_S[-1]),
        low=float(low_S[-1]),
        high=float(high_S[-1]),
        share_outside=num_outside / len(step_S),
    )


_ROUNDING = 1e-4
"""Limits are kept with five digits."""

_WINDOW = 5


def _smooth(name: str, series: Series) -> Series:
    """The mean over five steps; held-out values stay as they are, since they are means of many answers."""
    if name == HELDOUT or len(series) < _WINDOW:
        return series
    kernel = np.ones(_WINDOW)
    weight_S = np.convolve(np.ones(len(series)), kernel, "same")
    return Series(name, series.step_S, np.convolve(series.value_S, kernel, "same") / weight_S)


def _at(series: Series, steps: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.interp(np.asarray(steps, float), series.step_S.astype(float), series.value_S)


def _at_steps(limits: BandCurve, value_P: Sequence[float], step_S: np.ndarray) -> np.ndarray:
    return np.interp(step_S.astype(float), np.asarray(limits.step_P, float), np.asarray(value_P))


def _is_share(runs: Sequence[Series]) -> bool:
    """Whether no value is above 1 and some are close to it, as of a share: then no limit is above it."""
    return 0.5 < max(float(series.value_S.max()) for series in runs) <= 1.0


def _rounded(value_P: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in value_P.tolist()]


def main(arguments: Sequence[str]) -> int:
    """Make a band: its file, then the run folders."""
    if len(arguments) < 2:
        print("usage: python -m hybridrl.report.band FILE RUN...", file=sys.stderr)
        return 2
    path, *folders = map(Path, arguments)
    try:
        band = make([read_run(folder) for folder in folders], path.stem)
    except HybridRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write(band, path)
    for name, curve in band.curves.items():
        print(f"{name}: {curve.low_P[-1]:.3g} to {curve.high_P[-1]:.3g} at step {curve.step_P[-1]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
