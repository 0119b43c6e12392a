"""A setting holds the models that the trainer builds."""

from typing import Any

import pytest

from hybridrl.algorithms import Objective, load_estimator
from hybridrl.config.schema import AlgorithmConfig, Config
from hybridrl.errors import ConfigError
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import logprobs_s
from hybridrl.models.published import read_published
from tests.support.algorithm_choices import choices

QWEN = "Qwen/Qwen2.5-7B"
BESIDE = {
    "value": "critic",
    "process_logp": "process model",
    "ref_logp": "reference",
    "teacher_logp": "teacher",
}
TRAINED = {"actor", "critic", "process model"}


def setting(algorithm: dict[str, Any], **sections: Any) -> Setting:
    config = Config.model_validate(
        {
            "model": QWEN,
            "data": {"train": "math.parquet"},
            "reward": "math_verify",
            "algorithm": algorithm,
            "cluster": {"gpus_per_node": 8, "gpu": "h100"},
            "run": {"name": "plan"},
            **sections,
        }
    )
    spec = read_published(QWEN)
    assert spec is not None
    return Setting.of(config, spec, GPUS["h100"])


def test_every_algorithm_holds_what_its_columns_are_computed_by() -> None:
    compared = 0
    for choice in choices():
        algorithm = AlgorithmConfig.model_validate(choice)
        try:
            objective, estimator = Objective(algorithm, max_response_tokens=8), load_estimator(algorithm)
        except ConfigError:
            continue
        built = {BESIDE[column] for column in objective.columns | estimator.needs if column in BESIDE} | {
            "actor"
        }
        if algorithm.hint is not None and algorithm.teacher is None:
            built -= {"teacher"}  # it is the policy itself
        found, compared = setting(choice), compared + 1
        assert (set(found.trained), set(found.frozen)) == (built & TRAINED, built - TRAINED), choice
    assert compared > 1000


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    [
        ({}, 0),
        ({"loss": "copg"}, 2),
        ({"kl": {"coefficient": 0.1}}, 1),
        ({"kl": {"coefficient": 0.1, "in": "reward"}}, 2),
        ({"estimator": "optimal_token_baseline"}, 2),
    ],
)
def test_forward_passes_are_those_of_policy_and_reference(algorithm: dict, passes: int) -> None:
    """copg makes a column of the whole batch, so that its policy is asked too."""
    one = logprobs_s(setting({}, batch={"minibatch_prompts": 32}))  # two optimizer steps score once
    assert logprobs_s(setting(algorithm)) == pytest.approx(passes * one, rel=0.05)
