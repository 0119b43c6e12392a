"""A reward model's scores are those of transformers, however model and answers are cut."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reward_model_values as judge
import trainer_models
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

SHAPES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), TrainParallel(cp=2, dp=1)]
PIPELINE = 1


def compare(expected: list[float], found: Sequence[float]) -> None:
    """Scores of about 1; sums in another order."""
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def compare_shapes(folder: Path, ranks: list[list[list[float] | None]]) -> None:
    expected = judge.by_transformers(folder)
    for i in range(len(SHAPES)):
        first, last = (rank[i] for rank in ranks)
        assert last is not None and (first is None) == (i == PIPELINE)
        compare(expected, last)
        assert first is None or first == last


def test_scores_are_those_of_transformers_and_steps_beside_them_stay_the_same(tmp_path: Path) -> None:
    """The policy is of another family than the reward model on its ranks."""
    reward_model = judge.make_reward_model(values.make_model(tmp_path, "qwen2_tied"), tmp_path / "judge")
    policy = values.make_model(tmp_path, "qwen3")
    ranks: list[dict[str, Any]] = on_ranks(2, judge.apart_and_beside, policy, reward_model, SHAPES)
    compare_shapes(reward_model, [rank["apart"] for rank in ranks])
    for rank in ranks:
        shared, alone = rank["beside"][True], rank["beside"][False]
        assert shared["played"] == alone["played"] and len(shared["scores"]) == 2
        assert "token 37, the reward model has a vocabulary of 37" in shared["refused"]
        for scores in shared["scores"]:
            compare(judge.by_transformers(reward_model), scores)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gemma2"])
def test_other_families_score_as_in_transformers(tmp_path: Path, family: str) -> None:
    reward_model = judge.make_reward_model(trainer_models.make_model(tmp_path, family), tmp_path / "judge")
    compare_shapes(reward_model, on_ranks(2, judge.scored, reward_model, SHAPES))
