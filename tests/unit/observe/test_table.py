"""Which rows a run shows, and what is in them."""

import observe_values as values
import pytest

from hybridrl.observe.table import COLUMNS, Layout, Rows, row_every
from hybridrl.observe.units import brief, duration, size


def shown(steps: int, evaluated: tuple[int, ...] = (), step_s: float = 1.0) -> list[tuple[int, bool]]:
    """(step, has a held-out value) of every row of a run."""
    rows, due = Rows(steps), []
    if 0 in evaluated:
        due += rows.evaluation(values.heldout(0, 0.5))
    for step in range(1, steps + 1):
        due += rows.step(values.record(step, time=step * step_s))
        if step in evaluated:
            due += rows.evaluation(values.heldout(step, 0.5))
    due += rows.last()
    return [(int(m["training/global_step"]), "val-core/digits/reward/mean_at_1" in m) for m in due]


def test_about_twenty_rows_a_run_with_the_first_and_the_last() -> None:
    assert [step for step, _ in shown(100)] == [1, *range(5, 101, 5)]
    assert [step for step, _ in shown(7)] == list(range(1, 8))


def test_an_evaluation_joins_the_row_of_its_step() -> None:
    assert shown(30, evaluated=(0, 3, 30)) == [
        (0, True),
        (1, False),
        (2, False),
        (3, True),
        *((step, False) for step in range(4, 30, 2)),
        (30, True),
    ]


def test_slow_steps_all_get_a_row() -> None:
    assert len(shown(100, step_s=60.0)) == 100


def test_rows_are_at_round_steps() -> None:
    assert [row_every(steps) for steps in (1, 20, 21, 40, 100, 101, 10_000)] == [1, 1, 2, 2, 5, 10, 500]


@pytest.mark.parametrize(("width", "live"), [(50, True), (80, True), (100, True), (120, True), (120, False)])
def test_a_row_is_as_wide_as_its_header_and_fits(width: int, live: bool) -> None:
    layout = Layout.fit(width, live=live)
    metrics = {
        "training/global_step": 123456.0,
        "critic/score/mean": -0.51,
        "val-core/a/reward/mean_at_1": 0.25,
        "response_length/mean": 1234.5,
        "actor/entropy": 0.123,
        "actor/lr": 1e-6,
        "timing_s/gen": 141.0,
        "timing_s/update_actor": 88.0,
        "timing_s/step": 241.0,
        "sync/time_s": 0.28,
    }
    row = layout.row(metrics)
    assert len(row) == len(layout.header) <= width
    assert row.split()[:3] == ["123456", "-0.51", "0.25"]


def test_eighty_columns_show_all_but_the_learning_rate_and_the_used_share() -> None:
    missing = {c.title for c in COLUMNS if not c.log_only} - {
        c.title for c in Layout.fit(80, live=True).columns
    }
    assert missing == {"lr", "used"}


def test_what_was_not_measured_is_blank() -> None:
    layout = Layout.fit(120, live=True)
    assert layout.row({"training/global_step": 0.0}).split() == ["0"]


def test_times_and_sizes_for_a_person() -> None:
    times = (0.008, 0.0999, 1.94, 12.3, 99.4, 99.6, 291, 11_520)
    assert [duration(s) for s in times] == [
        "8 ms",
        "0.1 s",
        "1.9 s",
        "12 s",
        "99 s",
        "1 min 40 s",
        "4 min 51 s",
        "3 h 12 min",
    ]
    assert [size(n) for n in (0, 812, 1_800_000, 18.2e9)] == ["0 B", "812 B", "1.8 MB", "18.2 GB"]
    assert size(1.04e12) == "1.0 TB"


@pytest.mark.parametrize(
    "seconds", [0.0, 0.0994, 0.0996, 9.94, 9.96, 99.4, 99.6, 999, 1000, 5969, 5971, 3.5e5]
)
def test_a_brief_time_takes_six_characters_at_most(seconds: float) -> None:
    assert len(brief(seconds)) <= 6


def test_large_numbers_lose_digits_and_not_their_column() -> None:
    metrics = {"training/global_step": 1.0, "critic/score/mean": -1234.56, "response_length/mean": 123456.7}
    assert Layout.fit(120, live=True).row(metrics).split() == ["1", "-1235", "123457"]
    assert "-1e+08" in Layout.fit(120, live=True).row({"critic/score/mean": -1.234e8})


def test_a_learning_rate_keeps_its_digits() -> None:
    assert Layout.fit(120, live=True).row({"actor/lr": 5e-4}).split() == ["5.0e-04"]
