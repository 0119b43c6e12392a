"""Engines find the device memory that the trainer is done with, whatever of it waits in host memory."""

from pathlib import Path

import pytest
import reward_model_values as reward_models
import trainer_values as values
from released_memory import Releases, released
from trainer_ranks import on_ranks

AFTER_BUILD = {
    "policy": {
        "load": 0,  # the steps to come need what it took
        "first step": 0,
        "last step": 1,
        "save": 1,
        "restore": 1,
        "export": 1,
    },
    "reward model": {"scores": 1},
    "critic": {"load": 0, "first step": 0, "last step": 1, "save": 1, "restore": 1},
    "frozen": {"load": 1},
}


@pytest.fixture(scope="module", params=["none", "all"])
def counts(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Releases]:
    folder: Path = tmp_path_factory.mktemp("models")
    model = values.make_model(folder, "qwen3")
    reward_model = reward_models.make_reward_model(model, folder / "reward model")
    return on_ranks(1, released, model, reward_model, request.param, folder)[0]


@pytest.mark.parametrize("group", AFTER_BUILD)
def test_memory_is_given_back_where_the_work_on_it_ends(group, counts) -> None:
    found = dict(counts[group])
    assert found.pop("build") >= 1
    assert found == AFTER_BUILD[group]
