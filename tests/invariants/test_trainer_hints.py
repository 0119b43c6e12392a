"""Self-distillation on real trainer ranks: a policy that reads a hint teaches itself, and loss and gradients
equal transformers' on every parallel layout."""

from pathlib import Path

import pytest
import trainer_hints as hints
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

LAYOUTS = {
    "one rank": (1, TrainParallel(dp=1)),
    "dp 2": (2, TrainParallel(dp=2)),
    "tp 2": (2, TrainParallel(tp=2, dp=1)),
    "pp 2": (2, TrainParallel(pp=2, dp=1)),
    "cp 2": (2, TrainParallel(cp=2, dp=1)),
    "fsdp x2": (2, TrainParallel(dp=2)),
    "fsdp tp 2": (2, TrainParallel(tp=2, dp=1)),
    "fsdp cp 2": (2, TrainParallel(cp=2, dp=1)),
}
SLOW = ("tp 2", "pp 2", "fsdp tp 2", "fsdp cp 2")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYOUTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.mark.parametrize("layout", EACH)
def test_a_policy_teaches_itself_alike_on_every_layout(model: Path, layout: str) -> None:
    count, parallel = LAYOUTS[layout]
    backend = "fsdp" if layout.startswith("fsdp") else "megatron"
    wanted = hints.plain(model)
    for reports in on_ranks(count, hints.steps, model, parallel, backend):
        for report, (loss, norm) in zip(reports, wanted, strict=True):
            assert report["loss"] == pytest.approx(loss, rel=2e-5, abs=2e-6)
            assert report["grad_norm"] == pytest.approx(norm, rel=2e-5)
