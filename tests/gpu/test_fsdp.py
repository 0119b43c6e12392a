"""FSDP2 on GPUs, over NCCL, against plain torch on the CPU. One CUDA device is needed; two ranks need two."""

import multiprocessing
from pathlib import Path
from typing import Any

import gpu_ranks
import pytest
import torch
import trainer_ranks
import trainer_values as values

from hybridrl.config.training import TrainParallel

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS == 0, reason="needs a CUDA device")]

STEPS = 2


@pytest.fixture(scope="module")
def spawned() -> Any:
    """Ranks in new processes: a forked one cannot use CUDA that its parent initialised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_ranks, "_CONTEXT", multiprocessing.get_context("spawn"))
        yield


@pytest.mark.parametrize("dp", [1, 2])
@pytest.mark.parametrize(("precision", "rel"), [("fp32", 1e-4), ("bf16", 0.25)])
def test_steps_are_those_of_plain_torch(spawned, tmp_path: Path, dp: int, precision: str, rel: float) -> None:
    if dp > NUM_GPUS:
        pytest.skip(f"needs {dp} CUDA devices")
    folder, batch = values.make_model(tmp_path, "qwen3"), values.make_batch([])
    setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
    plain = list(values.plain_steps(model, values.make_block(), batch.advantage_N, setup, STEPS))
    actor = values.make_actor(precision=precision).model_copy(update={"backend": "fsdp"})
    args = ([folder], TrainParallel(dp=dp), (6,), STEPS, tmp_path / "export")
    for rank in trainer_ranks.on_ranks(dp, gpu_ranks.train, *args, actor=actor):
        for report, (loss, grad_norm) in zip(rank[0]["reports"], plain, strict=True):
            assert report["loss"] == pytest.approx(loss, rel=rel, abs=2e-2 if precision == "bf16" else 1e-6)
            assert report["grad_norm"] == pytest.approx(grad_norm, rel=rel)
        assert rank[0]["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
