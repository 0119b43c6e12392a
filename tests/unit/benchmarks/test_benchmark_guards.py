"""The benchmark of the guards: every guard is in it, and what it counts and bounds is right."""

import pytest
import torch

from benchmarks import guards
from hybridrl.algorithms.guards import GUARDS, Finding


def test_every_guard_is_measured() -> None:
    assert set(guards.SEVERITY) == set(GUARDS)
    assert {guard for guard, _ in guards.regimes()} == set(GUARDS)


@pytest.mark.parametrize("guard,name", guards.regimes())
def test_every_regime_is_of_correct_steps(guard, name) -> None:
    row = guards.measure(guard, name, steps=12, seed=0)
    assert (row["steps"], row["alarms"]) == (12, 0)


def test_alarms_are_counted(monkeypatch) -> None:
    def every_third(steps: int, draw: torch.Generator):
        return (Finding("mask", "error", "") if i % 3 == 0 else None for i in range(steps))

    monkeypatch.setitem(guards.COLUMNS["mask"], "loud", every_third)
    row = guards.measure("mask", "loud", steps=30, seed=0)
    assert (row["alarms"], row["rate"]) == (10, 1 / 3)
    assert row["rate_at_most"] == pytest.approx(16.96 / 30, rel=1e-3)  # of a Poisson table


def test_silence_bounds_the_rate_by_three_over_the_steps() -> None:
    assert guards.highest_mean(0) == pytest.approx(2.996, abs=1e-3)  # -log 0.05
    assert guards.highest_mean(1) == pytest.approx(4.744, abs=1e-3)
