"""An algorithm that would train on zeros is refused before a run; one that teaches anything is not."""

from typing import Any

import pytest

from hybridrl import registry
from hybridrl.algorithms.mute import refuse_mute
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError


def try_out(algorithm: Any) -> None:
    refuse_mute(AlgorithmConfig.model_validate({"samples_per_prompt": 4, **algorithm}))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_teaches_something(preset: str) -> None:
    try_out(PRESETS[preset].algorithm)


@pytest.mark.parametrize("name", registry.names("hybridrl.algorithms.estimators"))
def test_every_estimator_teaches_something_or_says_how_many_answers_it_takes(name: str) -> None:
    try_out({"estimator": name})
    try:
        try_out({"estimator": name, "samples_per_prompt": 1})
    except ConfigError as refused:
        assert refused.where == "algorithm.samples_per_prompt"


@pytest.mark.parametrize(
    ("algorithm", "key", "said"),
    [
        (
            {"shaping": [{"name": "affine", "scale": 0.0}]},
            "shaping",
            "after shaping affine every reward is the same",
        ),
        ({"shaping": ["affine", {"name": "clip", "lowest": 1.0, "highest": 1.0}]}, "shaping", "affine, clip"),
        ({"estimator": {"name": "distillation", "coefficient": 0.0}}, "estimator", "makes every advantage 0"),
        ({"estimator": f"{__name__}:Nothing"}, "estimator", "makes every advantage 0"),
        ({"estimator": {"name": "gdpo", "weights": [0.0, 0.0]}}, "estimator", "no part of the reward counts"),
        ({"correction": [{"name": "token_is", "cap": 0.0}]}, "loss", "has no gradient"),
        ({"correction": [{"name": "icepop", "lowest": 5.0, "highest": 0.5}]}, "loss", "has no gradient"),
        ({"loss": {"name": "truncated_is", "cap": 0.0}}, "loss", "truncated_is with its corrections has no"),
        (
            {"loss": {"name": "truncated_is", "cap": 0.0}, "kl": {"coefficient": 0.1}},
            "loss",
            "has no gradient",
        ),
    ],
)
def test_zeros_whatever_the_rewards_are_refused(algorithm: Any, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        try_out(algorithm)
    assert refused.value.where == f"algorithm.{key}"


@pytest.mark.parametrize(
    "algorithm",
    [
        {"shaping": [{"name": "clip", "lowest": 5.0, "highest": 10.0}]},
        {"shaping": [{"name": "clip", "lowest": 0.2, "highest": 0.3}]},
        {"shaping": [{"name": "clip", "lowest": -100.0, "highest": -50.0}]},
        {
            "shaping": [{"name": "clip", "lowest": -1.0, "highest": 0.0}],
            "estimator": "reinforce_plus_plus",
            "samples_per_prompt": 1,
        },
        {"correction": ["geometric_mask"]},
        {"correction": ["bypass", "token_is"]},
        {"estimator": {"name": "gdpo", "weights": [1.0, 0.0]}},
        {"estimator": f"{__name__}:Particular"},
    ],
)
def test_what_teaches_on_some_rewards_is_let_through(algorithm: Any) -> None:
    try_out(algorithm)


class Nothing:
    needs = frozenset()

    def __call__(self, reward_N, group_N):
        return reward_N * 0


class Particular:
    """Knows no made-up rewards."""

    needs = frozenset()

    def __call__(self, reward_N, group_N):
        raise ValueError("rewards are 3 or 4")
