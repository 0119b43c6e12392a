"""Computing each prompt once changes neither loss nor gradient nor log-probabilities."""

from pathlib import Path

import numpy as np
import pytest
import trainer_shared_prompts
import trainer_values as values
from trainer_ranks import on_ranks

RELATIVE = 2e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: values.make_model(folder, family) for family in ("qwen2_tied", "qwen3")}


@pytest.mark.parametrize("cuts", [(6,), (2, 4)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("family", ["qwen2_tied", "qwen3"])
def test_steps_are_those_of_whole_trajectories(
    models: dict[str, Path], family: str, shape: tuple[int, int, int], cuts: tuple[int, ...]
) -> None:
    ranks = on_ranks(int(np.prod(shape)), trainer_shared_prompts.steps, models[family], shape, cuts=cuts)
    tokens = {share: sum(found[share]["tokens"] for found in ranks) for share in (True, False)}
    assert tokens[True] < tokens[False]
    for found in ranks:
        shared, whole = found[True], found[False]
        for one, other in zip(shared["reports"], whole["reports"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=RELATIVE, abs=RELATIVE)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=RELATIVE)
        assert shared["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
        np.testing.assert_allclose(shared["old_logp"], whole["old_logp"], rtol=RELATIVE, atol=2e-6)
        for name, weight in whole["weights"].items():
            np.testing.assert_allclose(shared["weights"][name], weight, atol=2e-6)
