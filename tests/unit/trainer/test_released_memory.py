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


SMALL = 1024
"""Bytes that a result may take; the smallest model here has 160 kB of weights."""


@pytest.fixture(scope="module", params=["none", "optimizer", "all"])
def exits(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Releases]:
    folder: Path = tmp_path_factory.mktemp("models")
    model = values.make_model(folder, "qwen3")
    reward_model = reward_models.make_reward_model(model, folder / "reward model")
    return on_ranks(1, released, model, reward_model, request.param, folder)[0]


@pytest.mark.parametrize("group", AFTER_BUILD)
def test_memory_is_given_back_where_the_work_on_it_ends(group, exits) -> None:
    found = {what: left.releases for what, left in exits[group].items()}
    assert found.pop("build") >= 1
    assert found == AFTER_BUILD[group]


@pytest.mark.parametrize("group", AFTER_BUILD)
def test_nothing_that_an_engine_needs_stays_in_the_cache(group, exits) -> None:
    """What is freed after the last release stays there."""
    kept = {what: left.cached for what, left in exits[group].items() if left.releases}
    assert all(size <= SMALL for size in kept.values()), kept
    steps = [exits[group][what].cached for what in ("load", "first step") if what in AFTER_BUILD[group]]
    assert all(size > SMALL for size in steps if not exits[group]["load"].releases)  # it is recorded
