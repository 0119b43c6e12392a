"""Leaving out trajectories of advantage 0 changes neither loss nor gradient nor weights; steps that are not
finite are left out as a whole."""

from pathlib import Path

import numpy as np
import pytest
import trainer_skipping
import trainer_values as values
from trainer_ranks import on_ranks

RELATIVE = 2e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1)])
def test_steps_are_those_of_the_whole_batch(model: Path, shape: tuple[int, int, int]) -> None:
    for found in on_ranks(int(np.prod(shape)), trainer_skipping.steps, model, shape):
        for one, other in zip(found[True]["reports"], found[False]["reports"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=RELATIVE)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=RELATIVE)
        for name, weight in found[False]["weights"].items():
            np.testing.assert_allclose(found[True]["weights"][name], weight, atol=1e-6)


def test_a_batch_that_moves_nothing_takes_the_same_step(model: Path) -> None:
    found = on_ranks(1, trainer_skipping.steps, model, (1, 1, 1), still=tuple(range(12)))[0]
    assert [report["grad_norm"] for report in found[True]["reports"]] == [0.0, 0.0]
    for name, weight in found[False]["weights"].items():
        np.testing.assert_array_equal(found[True]["weights"][name], weight)


def test_metrics_of_the_policy_are_means_over_the_computed_tokens(model: Path) -> None:
    found = on_ranks(1, trainer_skipping.steps, model, (1, 1, 1))[0]
    one, other = (found[skipped]["reports"][0]["metrics"]["actor/entropy"] for skipped in (True, False))
    assert one == pytest.approx(other, rel=0.05) and one != other


def test_a_step_that_is_not_finite_is_skipped_on_every_rank_at_most_five_times_in_a_row(model: Path) -> None:
    for rank in on_ranks(2, trainer_skipping.skips_not_finite, model, (1, 1, 2)):
        assert rank["unchanged"] and rank["metrics"]["actor/skipped"] == 1.0
        assert all(np.isfinite(value) for value in rank["metrics"].values())
        assert any("step 1, minibatch 0 is skipped: loss" in text for _, text in rank["warnings"])
        assert rank["after_skip"] == rank["alone"]
        *skipped, last = rank["said"]
        assert skipped == ["nothing"] * 5
        assert last.startswith("NonFiniteError") and "as in the 5 optimizer steps before" in last
