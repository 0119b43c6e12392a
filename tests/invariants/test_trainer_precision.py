"""Training in fp16: nearly the steps of fp32; an overflow changes nothing but the loss scale."""

from typing import Any

import numpy as np
import pytest
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fp16")
    return on_ranks(1, scenarios.in_fp16, values.make_model(folder, "qwen2_tied"), folder / "saved")[0]


def test_fp16_takes_nearly_the_steps_of_fp32(found) -> None:
    for half, whole in zip(found["fp16"]["reports"], found["fp32"]["reports"], strict=True):
        assert half["loss"] == pytest.approx(whole["loss"], abs=2e-3)
        assert half["grad_norm"] == pytest.approx(whole["grad_norm"], rel=2e-2)
        assert half["lr"] == whole["lr"]
        assert half["metrics"]["actor/overflow"] == 0.0
        assert "actor/overflow" not in whole["metrics"]


def test_a_step_that_overflows_changes_only_the_loss_scale(found) -> None:
    first, second, third = found["overflowed"]["reports"]
    for report in (first, second, third):
        assert (report["lr"], report["grad_norm"], report["metrics"]["actor/overflow"]) == (0.0, 0.0, 1.0)
        assert np.isfinite(report["loss"])
    scales = [report["metrics"]["actor/loss_scale"] for report in (first, second, third)]
    assert scales == [2.0**100, 2.0**99, 2.0**98]  # Megatron forgives the first
    for name, weight in found["before"].items():
        np.testing.assert_array_equal(found["after"][name], weight)


def test_a_resumed_run_keeps_the_loss_scale_and_continues_bit_for_bit(found) -> None:
    (through, weights), (again, weights_again) = found["through"], found["again"]
    assert through == again
    assert through["reports"][0]["metrics"]["actor/loss_scale"] == 2.0**15
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, weights_again[name])
