"""Self-distillation on real trainer ranks: a policy that reads a hint teaches itself, and loss and gradients
equal transformers' on every parallel layout."""

from functools import partial
from pathlib import Path

import pytest
import trainer_hints as hints
import trainer_values as values
from trainer_layouts import EACH, LAYOUTS
from trainer_ranks import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("form", hints.LOSSES)
@pytest.mark.parametrize("layout", EACH)
def test_a_policy_teaches_itself_alike_on_every_layout(model: Path, layout: str, form: str) -> None:
    count, parallel = LAYOUTS[layout]
    backend = "fsdp" if layout.startswith("fsdp") else "megatron"
    wanted = hints.plain(model, form)
    steps = partial(hints.steps, form=form)
    for reports in on_ranks(count, steps, model, parallel, backend):
        for report, (loss, norm) in zip(reports, wanted, strict=True):
            assert report["loss"] == pytest.approx(loss, rel=2e-5, abs=2e-6)
            assert report["grad_norm"] == pytest.approx(norm, rel=2e-5)
