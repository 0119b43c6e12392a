"""ECHO on real trainer ranks: loss and gradients on what an environment wrote equal transformers' on every
parallel layout."""

from pathlib import Path

import pytest
import trainer_observations as observations
import trainer_values as values
from trainer_layouts import EACH, LAYOUTS
from trainer_ranks import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("over", ["answer", "token"])
@pytest.mark.parametrize("layout", EACH)
def test_observations_are_learnt_alike_on_every_layout(model: Path, layout: str, over: str) -> None:
    count, parallel = LAYOUTS[layout]
    backend = "fsdp" if layout.startswith("fsdp") else "megatron"
    wanted = observations.plain(model, over)
    for reports in on_ranks(count, observations.steps, model, parallel, over, backend):
        for report, (loss, norm) in zip(reports, wanted, strict=True):
            assert report["metrics"]["actor/observation_loss"] == pytest.approx(loss, rel=2e-5)
            assert report["loss"] == pytest.approx(observations.COEFFICIENT * loss, rel=2e-5)
            assert report["grad_norm"] == pytest.approx(norm, rel=2e-5)
