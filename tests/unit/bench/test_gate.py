"""The regression gate: what is worse than stored by more than chance fails, and nothing else."""

import pytest

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.gate import compare
from hybridrl.bench.record import Row
from hybridrl.errors import ConfigError

BENCH = Bench(
    name="step",
    about="",
    metrics={
        "step_s": Metric("s", "a step", "lower", gated=True),
        "tokens_s": Metric("tokens/s/device", "tokens", "higher", gated=True),
        "other": Metric("s", "not gated", "lower"),
    },
    cases=[Case(name="small", config={})],
    smoke=[],
    measure=lambda case: {},
)


def row(median: float, low: float, high: float, metric: str = "step_s", **fields: str) -> Row:
    value = {"unit": "s", "median": median, "quartile_1": low, "quartile_3": high, "repeats": 5}
    base = {"machine_class": "a", "case": "small", "contestant": "hybridrl", "config_hash": "0"}
    return {**base, "metrics": {metric: value, "other": {**value, "median": 1e9}}, **fields}


def failed(now: Row, stored: Row) -> bool:
    [found] = compare(BENCH, [now], [stored], 1.15)
    return found.failed


@pytest.mark.parametrize(
    ("now", "fails"),
    [
        ((1.0, 0.9, 1.1), False),
        ((0.5, 0.4, 0.6), False),
        ((1.14, 1.13, 1.15), False),  # within the tolerance
        ((1.3, 1.02, 1.5), False),  # as good a quarter of the time
        ((1.3, 1.2, 1.4), True),
    ],
)
def test_a_longer_time_fails(now: tuple[float, float, float], fails: bool) -> None:
    assert failed(row(*now), row(1.0, 0.95, 1.05)) is fails


@pytest.mark.parametrize(("now", "fails"), [((80.0, 75.0, 85.0), True), ((120.0, 110.0, 130.0), False)])
def test_a_lower_speed_fails(now: tuple[float, float, float], fails: bool) -> None:
    assert failed(row(*now, metric="tokens_s"), row(100.0, 98.0, 102.0, metric="tokens_s")) is fails


def test_the_ratio_says_how_many_times_worse() -> None:
    [slow] = compare(BENCH, [row(2.0, 2, 2)], [row(1.0, 1, 1)], 3.0)
    [few] = compare(BENCH, [row(50, 50, 50, "tokens_s")], [row(100, 100, 100, "tokens_s")], 3.0)
    assert slow.ratio == few.ratio == 2.0 and not slow.failed


def test_another_machine_or_other_sizes_cannot_be_compared() -> None:
    stored = [row(1, 1, 1)]
    with pytest.raises(ConfigError, match="never measured on b; the stored runs are of a"):
        compare(BENCH, [row(1, 1, 1, machine_class="b")], stored, 1.15)
    with pytest.raises(ConfigError, match="no run of it is stored"):
        compare(BENCH, [row(1, 1, 1, case="large")], stored, 1.15)
    with pytest.raises(ConfigError, match="other sizes than the stored run"):
        compare(BENCH, [row(1, 1, 1, config_hash="1")], stored, 1.15)
