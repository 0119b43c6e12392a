"""Score centering on real trainer ranks: loss and gradients equal transformers' on every parallel layout."""

from pathlib import Path

import pytest
import trainer_heads as heads
import trainer_values as values
from trainer_layouts import EACH, LAYOUTS
from trainer_ranks import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("layout", EACH)
def test_scores_are_centred_alike_on_every_layout(model: Path, layout: str) -> None:
    count, parallel = LAYOUTS[layout]
    backend = "fsdp" if layout.startswith("fsdp") else "megatron"
    wanted = list(heads.plain(model))
    for reports in on_ranks(count, heads.steps, model, parallel, backend):
        for report, (loss, norm) in zip(reports, wanted, strict=True):
            assert report["loss"] == pytest.approx(loss, rel=2e-5)
            assert report["grad_norm"] == pytest.approx(norm, rel=2e-5)
            assert 0 < report["metrics"]["actor/engine_head"] < 1
            assert report["metrics"]["actor/score_centre"] > 0.01
