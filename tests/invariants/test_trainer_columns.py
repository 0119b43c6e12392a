"""A column that somebody outside declares and puts into token blocks reaches loss and estimator by name."""

from pathlib import Path

import numpy as np
import pytest
import trainer_columns
import trainer_values as values
from trainer_ranks import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (2, 1, 1)])
def test_a_column_of_any_name_reaches_loss_and_estimator(model: Path, shape: tuple[int, int, int]) -> None:
    found = on_ranks(int(np.prod(shape)), trainer_columns.travel, model, shape)
    for each in found:
        logp_of = {m: p for moods, logps in each["sent"] for m, p in zip(moods.tolist(), logps.tolist())}
        received = [pair for moods, logps in each["loss"] for pair in zip(moods.tolist(), logps.tolist())]
        assert received and all(logp_of[mood] == logp for mood, logp in received)
        assert each["pictures"] == [each["sent_pictures"]]
    everything = sorted(mood for moods, _ in found[0]["sent"] for mood in moods.tolist())
    ranks = found if shape[2] > 1 else found[:1]  # tensor-parallel ranks see the same
    seen = [sorted(m for each in ranks for moods in part(each) for m in moods.tolist()) for part in PARTS]
    assert seen == [everything, sorted(everything * 2)]  # the loss in each of two optimizer steps
    assert found[0]["losses"] == found[-1]["losses"]


PARTS = (lambda each: each["estimator"], lambda each: [moods for moods, _ in each["loss"]])
