"""A rank whose collective another rank does not join gives up after the deadline of collectives."""

from pathlib import Path

import pytest
import trainer_values as values
from fsdp_scenarios import SHAPES, skips_a_step
from trainer_ranks import on_ranks

from hybridrl.cluster.collectives import is_of_collective


@pytest.mark.parametrize("backend", SHAPES)
def test_a_collective_has_the_deadline_of_the_config(backend: str, tmp_path: Path) -> None:
    model = values.make_model(tmp_path / "model", "qwen2")
    error, _ = on_ranks(2, skips_a_step, model, backend, tmp_path / "over")
    assert "6000ms" in error and is_of_collective(RuntimeError(error))
