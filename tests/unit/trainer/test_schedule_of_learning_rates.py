"""The learning rate over the optimizer steps of a run."""

import math

import pytest

from hybridrl.config.training import OptimizerConfig
from hybridrl.trainer.learning_rate import learning_rate


def course(num_steps: int, **options: object) -> list[float]:
    config = OptimizerConfig(lr=1.0, **options)
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


def test_constant_stays() -> None:
    assert course(3) == [1.0, 1.0, 1.0]


def test_warm_up_rises_in_equal_parts_to_the_peak_and_no_step_is_idle() -> None:
    assert course(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_towards_the_end_and_stays_there() -> None:
    config = {"schedule": "linear", "min_lr": 0.2, "warmup_steps": 1}
    assert course(5, **config) == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4])
    assert learning_rate(OptimizerConfig(lr=1.0, **config), 5, 5) == pytest.approx(0.2)
    assert learning_rate(OptimizerConfig(lr=1.0, **config), 50, 5) == pytest.approx(0.2)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = course(8, schedule="cosine", min_lr=0.0)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
