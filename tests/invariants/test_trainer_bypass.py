"""With `bypass` the policy does not score a batch before its optimizer steps; nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
import trainer_bypass
import trainer_values as values
from trainer_ranks import on_ranks

AGREEMENT = "training/rollout_logp_diff_max"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (1, 2, 1)])
def test_steps_are_those_of_a_batch_that_was_scored_first(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    folder = values.make_model(tmp_path, "qwen3")
    for found in on_ranks(int(np.prod(shape)), trainer_bypass.steps, folder, shape):
        one, other = found[False], found[True]
        assert [report["loss"] for report in one["reports"]] == [r["loss"] for r in other["reports"]]
        assert one["weights"].keys() == other["weights"].keys()
        assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def test_engine_and_trainer_are_compared_at_the_tokens_of_the_first_step(tmp_path: Path) -> None:
    found = on_ranks(1, trainer_bypass.steps, values.make_model(tmp_path, "qwen3"), (1, 1, 1))[0]
    first, second = found[False]["reports"]
    assert AGREEMENT not in found[False]["loaded"] and AGREEMENT not in second["metrics"]
    assert 0 < first["metrics"][AGREEMENT] <= found[True]["loaded"][AGREEMENT]
