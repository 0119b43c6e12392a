"""Long series are thinned out without losing their extremes."""

import numpy as np
import report_values as values

from hybridrl.report.run_data import read_run, settings_of
from hybridrl.report.series import MOST_POINTS, Series, number


def test_a_short_series_is_kept_as_it_is() -> None:
    thin = Series("m", np.array([1, 2, 5]), np.array([3.0, 1.0, 2.0])).thinned
    assert thin.step_B.tolist() == [1, 2, 5] and thin.mean_B.tolist() == [3.0, 1.0, 2.0]
    assert thin.low_B.tolist() == thin.high_B.tolist() == [3.0, 1.0, 2.0]


def test_a_long_series_keeps_mean_lowest_and_highest_value() -> None:
    value = np.random.default_rng(0).normal(size=9_973)
    thin = Series("m", np.arange(9_973), value).thinned
    assert len(thin.step_B) == MOST_POINTS and thin.step_B[-1] == 9_972
    assert thin.low_B.min() == value.min() and thin.high_B.max() == value.max()
    counts = np.diff([-1, *thin.step_B])
    assert np.isclose((thin.mean_B * counts).sum(), value.sum())


def test_config_keys_have_their_values_and_origins() -> None:
    text = """\
# hybridrl 0.1.0, from configs/a.yaml
model:
  path: runs/m               # a.yaml:2
data:
  train:
    task: "a # b"            # a.yaml:4
  order: null                # default
run:
  sinks: [mlflow, {name: x}] # command line
"""
    found = [(one.key, one.value, one.origin, one.is_default) for one in settings_of(text)]
    assert found == [
        ("model.path", "runs/m", "a.yaml:2", False),
        ("data.train.task", '"a # b"', "a.yaml:4", False),
        ("data.order", "null", "default", True),
        ("run.sinks", "[mlflow, {name: x}]", "command line", False),
    ]


def test_heldout_rewards_are_averaged_over_data_sets(tmp_path) -> None:
    run = read_run(values.run_folder(tmp_path / "a", heldout=[0.25, 0.5]))
    assert run.heldout is not None and run.heldout.value_S.tolist() == [0.25, 0.5]


def test_numbers_for_people() -> None:
    assert [number(v) for v in (0.0, 0.12345, 1234567.0, 2e-5, 12345.6, -3.0)] == [
        *("0", "0.1235", "1.23e+06", "2.00e-05", "12,346", "-3")
    ]
