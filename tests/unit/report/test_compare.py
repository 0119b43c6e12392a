"""Runs are compared by arm, seed by seed where that is possible, and one seed is never significant."""

import math
from pathlib import Path

import pytest
import report_values as values

from hybridrl.errors import ConfigError
from hybridrl.report.compare import Comparison, compare, lines, paired, welch
from hybridrl.report.student import quantile, two_sided_p


def runs(folder: Path, arm: str, last: list[float], seeds: list[int], **config) -> list[Path]:
    return [
        values.run_folder(folder / f"{arm}{i}", heldout=[0.1, reward], run__seed=seed, **config)
        for i, (reward, seed) in enumerate(zip(last, seeds, strict=True))
    ]


def two_arms(folder: Path, first: list[float], second: list[float], seeds: list[list[int]]) -> Comparison:
    own = runs(folder, "a", first, seeds[0], algorithm__clip="0.2")
    return compare([*own, *runs(folder, "b", second, seeds[1], algorithm__clip="0.28")])


def test_runs_are_grouped_by_their_config_without_the_seed(tmp_path: Path) -> None:
    found = two_arms(tmp_path, [0.5, 0.6], [0.7, 0.8], [[0, 1], [0, 1]])
    assert [arm.seeds for arm in found.arms] == [("0", "1"), ("0", "1")]
    assert found.changed == {"algorithm.clip": ("0.2", "0.28")}


def test_equal_seeds_are_compared_in_pairs(tmp_path: Path) -> None:
    """The seeds differ by far more than the arms do, which only pairs show."""
    found = two_arms(tmp_path, [0.1, 0.5, 0.9], [0.912, 0.11, 0.511], [[0, 1, 2], [2, 0, 1]])
    ((first, *_),) = found.differences
    assert first.is_paired and first.is_significant and math.isclose(first.difference, 0.011)
    assert (
        not two_arms(tmp_path / "other", [0.1, 0.5, 0.9], [0.11, 0.511, 0.912], [[0, 1, 2], [3, 4, 5]])
        .differences[0][0]
        .is_significant
    )


def test_one_seed_each_is_never_significant(tmp_path: Path) -> None:
    found = two_arms(tmp_path, [0.1], [0.9], [[0], [0]])
    assert found.differences[0][0].p is None
    text = "\n".join(line for _, line in lines(found))
    assert "1 seed cannot tell whether that is the change or the seed" in text and "0.8 higher" in text


def test_seeds_of_one_config_show_the_noise_between_seeds(tmp_path: Path) -> None:
    found = compare(runs(tmp_path, "a", [0.5, 0.7], [0, 1]))
    assert not found.differences
    text = "\n".join(line for _, line in lines(found))
    assert "noise between seeds" in text and "held-out reward, last: 0.6 ± 0.1414" in text


@pytest.mark.parametrize("names", [["a0"], ["a0", "a0"], ["a0", "../a/a0"]])
def test_one_run_cannot_be_compared(tmp_path: Path, names: list[str]) -> None:
    runs(tmp_path / "a", "a", [0.5], [0])
    with pytest.raises(ConfigError, match="two runs or more|a run twice"):
        compare([tmp_path / "a" / name for name in names])


def test_t_tests_equal_the_textbook() -> None:
    """scipy.stats.ttest_ind(equal_var=False) and ttest_rel on the same numbers."""
    first, second = [1.0, 2.0, 4.0], [3.0, 5.0, 7.0, 6.0]
    (low, high), p = welch(first, second) or ((0.0, 0.0), 0.0)
    assert math.isclose(p, 0.06634963, rel_tol=1e-5) and low < 0 < high
    (low, high), p = paired([1.0, 2.0, 4.0], [2.0, 2.5, 6.0]) or ((0.0, 0.0), 0.0)
    assert math.isclose(p, 0.11808290, rel_tol=1e-5) and math.isclose((low + high) / 2, 7 / 6)


def test_equal_values_differ_with_certainty_or_not_at_all() -> None:
    assert paired([1.0, 2.0], [1.0, 2.0]) == ((0.0, 0.0), 1.0)
    assert welch([1.0, 1.0], [2.0, 2.0]) == ((1.0, 1.0), 0.0)


@pytest.mark.parametrize(("df", "t"), [(1, 12.706204736), (4, 2.776445105), (30, 2.042272456)])
def test_quantiles_equal_the_table(df: int, t: float) -> None:
    assert math.isclose(quantile(0.95, df), t, rel_tol=1e-8) and math.isclose(
        two_sided_p(t, df), 0.05, rel_tol=1e-8
    )
