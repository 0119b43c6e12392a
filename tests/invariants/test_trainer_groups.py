"""Critic and reference with ranks of their own, cut in other ways than the actor, compute what they would on
the actor's ranks."""

from pathlib import Path

import numpy as np
import pytest
import trainer_groups as groups
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_groups import Shapes
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import CriticConfig

PPO = AlgorithmConfig(estimator="gae", kl={"coefficient": 0.1, "estimator": "k1", "in": "reward"})
COLUMNS = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}
SETUP = {"critic": CriticConfig(optimizer={"lr": 3e-3, "eps": 1e-4})}
SHAPES = [
    Shapes(actor=(2, 1, 1), critic=(1, 2, 1), reference=(1, 1, 1)),
    Shapes(actor=(1, 1, 2), critic=(1, 1, 2), reference=(1, 1, 1)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen2_tied")


def test_columns_and_steps_are_those_of_shared_ranks(model, tmp_path) -> None:
    epochs = [scenarios.split(i, 1, (6,)) for i in range(2)]
    together = on_ranks(
        1, scenarios.algorithm_run, model, (1, 1, 1), PPO, epochs, setup=SETUP, steps=2, **COLUMNS
    )[0]
    separate = on_ranks(
        5, groups.played_apart, model, SHAPES, tmp_path, algorithm=PPO, columns=COLUMNS, setup=SETUP, steps=2
    )
    for i, shapes in enumerate(SHAPES):
        num_actors, num_critics, _ = shapes.num_ranks
        for rank in range(num_actors):
            _compare_actor(together, separate[rank][i])
        for rank in range(num_actors, num_actors + num_critics):
            _compare_critic(together, separate[rank][i])


def _compare_actor(together: dict, separate: dict) -> None:
    """Sums in another order: 2e-6, and where a metric is a difference of equal sums 1e-6 of their size."""
    for one, other in zip(together["played"], separate["played"], strict=True):
        assert other["loaded"] == pytest.approx(one["loaded"], rel=2e-6, abs=1e-6)
        for report, report_apart in zip(one["reports"], other["reports"], strict=True):
            assert report_apart["loss"] == pytest.approx(report["loss"], rel=2e-6, abs=1e-7)
            assert report_apart["grad_norm"] == pytest.approx(report["grad_norm"], rel=2e-6)
    assert together["played"][1]["loaded"]["actor/reward_kl_penalty"] > 1e-4  # the policy has moved
    for logp, logp_apart in zip(together["logps"], separate["logps"], strict=True):
        np.testing.assert_allclose(logp_apart, logp, atol=5e-6, rtol=0)


def _compare_critic(together: dict, separate: dict) -> None:
    for one, steps in zip(together["played"], separate["played"], strict=True):
        for report, metrics in zip(one["reports"], steps, strict=True):
            assert metrics.keys() == {name for name in report["metrics"] if name.startswith("critic/")}
            for name, value in metrics.items():
                assert value == pytest.approx(report["metrics"][name], rel=2e-6, abs=1e-9), name
    assert separate["resumed"] == separate["played"][-1]
