"""Compares runs: the keys in which they differ, and whether what came out differs by more than seeds do.

Runs whose configs are equal but for the seed are the seeds of one arm. Two arms with the same seeds are
compared seed by seed (paired t-test), others by their means (Welch's t-test). With one seed each there is no
test, since nobody knows how much of the difference is the seed's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev, variance

from hybridrl.errors import ConfigError
from hybridrl.report.run_data import RunData, read_run
from hybridrl.report.series import Series, number
from hybridrl.report.student import quantile, two_sided_p
from hybridrl.wording import counted

_SHARE = 0.95
"""Confidence of the intervals; a difference is significant below a p of 1 minus this."""

_LATE = 0.2
"""Share of the steps, the last ones, that a value at the end is the mean of."""

NO_ARM = ("run.name", "run.folder", "run.seed", "run.samples_kept", "run.sample_every", "observe.sinks")
"""Keys in which the seeds of one arm may differ."""


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    value: Callable[[RunData], float | None]
    """The number of a run; None: the run has none."""


@dataclass(frozen=True, slots=True)
class Arm:
    letter: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(str(run.setting("run.seed")) for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One measure of two arms."""

    name: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    interval: tuple[float, float] | None
    """Confidence interval of second - first; None: there are too few seeds."""

    p: float | None
    is_paired: bool

    @property
    def difference(self) -> float:
        return mean(self.second) - mean(self.first)

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < 1 - _SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    arms: tuple[Arm, ...]
    changed: Mapping[str, tuple[str, ...]]
    """Key -> its value in each arm, of the keys in which arms differ."""

    differences: tuple[tuple[Difference, ...], ...]
    """For each arm but the first: its differences from the first."""


def compare(folders: Sequence[Path]) -> Comparison:
    """
    Raises:
        ConfigError: fewer than two runs.
        RunFolderError: a folder holds no run that has taken a step.
    """
    if len(folders) < 2:
        raise ConfigError(
            f"compare needs two runs or more, got {len(folders)}", fix="hybridrl compare runs/a runs/b"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("compare got a run twice", fix="name each folder once")
    arms = arms_of([read_run(folder) for folder in folders])
    others = tuple(tuple(differences(arms[0], arm)) for arm in arms[1:])
    return Comparison(arms=arms, changed=changed_keys(arms), differences=others)


def arms_of(runs: Sequence[RunData]) -> tuple[Arm, ...]:
    """The runs by their config without its seed, in the order given."""
    found: dict[tuple[tuple[str, str], ...], list[RunData]] = {}
    for run in runs:
        config = tuple((one.key, one.value) for one in run.settings if one.key not in NO_ARM)
        found.setdefault(config, []).append(run)
    return tuple(Arm(chr(ord("A") + i), tuple(own)) for i, own in enumerate(found.values()))


def changed_keys(arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    values = [{one.key: one.value for one in arm.runs[0].settings} for arm in arms]
    keys = [key for key in {key: None for own in values for key in own} if key not in NO_ARM]
    rows = {key: tuple(own.get(key, "(unset)") for own in values) for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def differences(first: Arm, second: Arm) -> Iterator[Difference]:
    paired = first.seeds and sorted(first.seeds) == sorted(second.seeds) and len(set(first.seeds)) > 1
    for measure in MEASURES:
        own, other = _values(first, measure), _values(second, measure)
        if own and other:
            yield _difference(measure.name, own, other, is_paired=bool(paired))


def _difference(
    name: str, first: Mapping[str, float], second: Mapping[str, float], *, is_paired: bool
) -> Difference:
    is_paired = is_paired and first.keys() == second.keys()
    values = tuple(first.values()), tuple(second[seed] for seed in (first if is_paired else second))
    test = paired(*values) if is_paired else welch(*values)
    interval, p = test or (None, None)
    return Difference(
        name=name, first=values[0], second=values[1], interval=interval, p=p, is_paired=is_paired
    )


Test = tuple[tuple[float, float], float]
"""Confidence interval of the difference, and p."""


def paired(first: Sequence[float], second: Sequence[float]) -> Test | None:
    """Paired t-test; None with fewer than two pairs."""
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    if len(gaps) < 2:
        return None
    return _test(mean(gaps), stdev(gaps) / math.sqrt(len(gaps)), len(gaps) - 1)


def welch(first: Sequence[float], second: Sequence[float]) -> Test | None:
    """Welch's t-test; None if an arm has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    spread = sum(part**2 / (len(own) - 1) for part, own in zip(parts, (first, second), strict=True))
    return _test(mean(second) - mean(first), error, sum(parts) ** 2 / spread if spread else 1.0)


def _test(difference: float, error: float, df: float) -> Test:
    if not error:  # equal in every seed
        return (difference, difference), 0.0 if difference else 1.0
    reach = quantile(_SHARE, df) * error
    return (difference - reach, difference + reach), two_sided_p(difference / error, df)


def _values(arm: Arm, measure: Measure) -> dict[str, float]:
    """Seed -> value, of the runs that have one; runs of one seed are told apart by their place."""
    found: dict[str, float] = {}
    for i, (run, seed) in enumerate(zip(arm.runs, arm.seeds, strict=True)):
        value = measure.value(run)
        if value is not None:
            found[seed if seed not in found else f"{seed} of run {i}"] = value
    return found


def _late(name: str) -> Callable[[RunData], float | None]:
    def value(run: RunData) -> float | None:
        series = run.steps.get(name)
        return None if series is None else float(series.value_S[-max(1, round(len(series) * _LATE)) :].mean())

    return value


def _heldout(of: Callable[[Series], float]) -> Callable[[RunData], float | None]:
    return lambda run: None if run.heldout is None else of(run.heldout)


MEASURES = (
    Measure("held-out reward, last", _heldout(lambda series: series.last)),
    Measure("held-out reward, mean of the run", _heldout(lambda series: float(series.value_S.mean()))),
    Measure(
        "held-out loss, last",
        lambda run: run.evaluations["val/loss"].last if "val/loss" in run.evaluations else None,
    ),
    Measure("training reward, last fifth", _late("critic/score/mean")),
    Measure("training loss, last fifth", _late("train/loss")),
    Measure("entropy, last fifth", _late("actor/entropy")),
    Measure("answer length, last fifth", _late("response_length/mean")),
    Measure("seconds per step, last fifth", _late("perf/time_per_step")),
    Measure("tokens/s, last fifth", _late("perf/throughput")),
)
"""What runs are compared by. The first one that the arms have decides the verdict."""


def lines(found: Comparison) -> Iterator[tuple[str, str]]:
    """(heading, text) of each line; a line with an empty heading belongs to the heading above it."""
    for arm in found.arms:
        names = ", ".join(str(run.folder) for run in arm.runs)
        yield f"run {arm.letter}", f"{names}  ({counted(len(arm.runs), 'run')}; seed {', '.join(arm.seeds)})"
    heading = "config"
    for key, values in found.changed.items():
        yield heading, f"{key} = {'  ->  '.join(values)}"
        heading = ""
    if not found.differences:
        yield "verdict", "these are seeds of one config: what differs is the noise between seeds"
        yield from _noise(found.arms[0])
    for arm, own in zip(found.arms[1:], found.differences, strict=True):
        yield from _table(arm.letter, own)
        yield "verdict", verdict(own)


def verdict(own: Sequence[Difference]) -> str:
    """One sentence: whether the measure that decides differs by more than seeds do."""
    if not own:
        return "the runs have no measure in common"
    first = own[0]
    direction = "higher" if first.difference > 0 else "lower"
    by = f"{first.name} is {number(abs(first.difference))} {direction}"
    if first.p is None or first.interval is None:
        fewest = min(len(first.first), len(first.second))
        return (
            f"{by}, and {counted(fewest, 'seed')} cannot tell whether that is the change or the seed: "
            "run both with three seeds or more (run.seed=1 run.name=...), and compare them all"
        )
    low, high = map(number, first.interval)
    how = "paired by seed" if first.is_paired else "Welch"
    if first.is_significant:
        return f"{by}: significant, p = {first.p:.2g} ({how}), 95 % interval {low} to {high}"
    return f"no significant difference: {by}, p = {first.p:.2g} ({how}), 95 % interval {low} to {high}"


def _table(letter: str, own: Sequence[Difference]) -> Iterator[tuple[str, str]]:
    rows = [("", "A", letter, f"{letter} - A", "p"), *(_row(one) for one in own)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for i, row in enumerate(rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "results" if i == 0 else "", "  ".join(cells)


def _row(one: Difference) -> tuple[str, str, str, str, str]:
    p = "one seed" if one.p is None else f"{one.p:.2g}"
    return one.name, _spread(one.first), _spread(one.second), f"{_signed(one.difference)}", p


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _spread(values: Sequence[float]) -> str:
    return number(mean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def _noise(arm: Arm) -> Iterator[tuple[str, str]]:
    heading = "results"
    for measure in MEASURES:
        if found := tuple(_values(arm, measure).values()):
            yield heading, f"{measure.name}: {_spread(found)} ({', '.join(map(number, found))})"
            heading = ""


def as_dict(found: Comparison) -> dict[str, object]:
    """The comparison for programs."""
    return {
        "arms": {
            arm.letter: {"runs": [str(run.folder) for run in arm.runs], "seeds": arm.seeds}
            for arm in found.arms
        },
        "config": found.changed,
        "differences": {
            arm.letter: [
                {
                    "measure": one.name,
                    "A": one.first,
                    arm.letter: one.second,
                    "difference": one.difference,
                    "interval": one.interval,
                    "p": one.p,
                    "paired": one.is_paired,
                }
                for one in own
            ]
            for arm, own in zip(found.arms[1:], found.differences, strict=True)
        },
    }
