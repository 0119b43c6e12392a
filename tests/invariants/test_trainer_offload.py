"""Optimizer state, gradients and frozen weights that wait in host memory change no bit of the training."""

from pathlib import Path

import numpy as np
import pytest
import trainer_groups as groups
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig

PPO = AlgorithmConfig(estimator="gae", kl={"coefficient": 0.1, "estimator": "k1", "in": "reward"})
COLUMNS = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


def test_a_run_with_offload_is_the_run_without(model, tmp_path) -> None:
    """Two batches and a checkpoint between them, in bf16: the optimizer has weights of its own.

    Gradients that do not leave are summed through shared memory, those that do are summed by gloo.
    """
    precise = values.make_actor(precision="bf16").model_dump()
    actors = {
        choice: ActorConfig(**{**precise, "offload": choice}) for choice in ("none", "optimizer", "all")
    }
    for rank in on_ranks(
        2, groups.played_with_offload, model, actors, tmp_path, algorithm=PPO, columns=COLUMNS
    ):
        without = rank["none"]
        assert without["away"] == {"state": False, "gradients": False, "frozen": False, "critic": False}
        assert {choice: rank[choice]["shared"] for choice in actors} == {
            **{"none": True, "optimizer": True},
            "all": False,
        }
        assert rank["optimizer"]["away"] == {**without["away"], "state": True}
        assert set(rank["all"]["away"].values()) == {True}
        for choice in ("optimizer", "all"):
            assert rank[choice]["played"] == without["played"]
            assert rank[choice]["resumed"] == without["resumed"]
            for name, weight in without["weights"].items():
                np.testing.assert_array_equal(rank[choice]["weights"][name], weight)
