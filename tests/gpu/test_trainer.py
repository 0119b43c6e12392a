"""The trainer on GPUs against transformers: NCCL, Transformer Engine's layers and fused Adam.

Needs what requirements/gpu.txt lists and one CUDA device of compute capability 8.0 or above; shapes of two
ranks need two. Other tests cover names, shapes and numerics of these layers on a CPU, with torch in the place
of Transformer Engine: tests/unit/trainer/test_cuda_spec.py.
"""

import importlib.util
import multiprocessing
from pathlib import Path
from typing import Any

import gpu_ranks
import numpy as np
import pytest
import torch
import trainer_models as models
import trainer_ranks
import trainer_values as values

from hybridrl.config.training import TrainParallel

NUM_GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS == 0, reason="needs a CUDA device"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None,
        reason="needs Transformer Engine, as requirements/gpu.txt lists it",
    ),
]

STEPS = 2
KINDS = ("qwen3_yarn", "qwen3_moe", "gemma2", "gemma3", "deepseek_v3")
SHAPES = {
    "one_rank": TrainParallel(dp=1),
    "tp2": TrainParallel(dp=1, tp=2),
    "pp2": TrainParallel(dp=1, pp=2),
    "cp2": TrainParallel(dp=1, cp=2),
    "ep2": TrainParallel(dp=2, ep=2),
}
TF32 = 5e-3
"""Relative: Transformer Engine multiplies fp32 matrices in TF32, whose mantissa has 10 bits."""


def needs_gpus(name: str) -> Any:
    wanted = SHAPES[name].num_ranks
    return pytest.param(
        name, marks=pytest.mark.skipif(wanted > NUM_GPUS, reason=f"needs {wanted} CUDA devices")
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: models.make_model(folder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """By transformers on the CPU, in fp32."""
    out = tmp_path_factory.mktemp("plain")
    return {kind: models.learn_plainly(folder, out) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def spawned() -> Any:
    """Ranks in new processes: a forked one cannot use CUDA that its parent looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_ranks, "_CONTEXT", multiprocessing.get_context("spawn"))
        yield


def train(folders: list[Path], shape: TrainParallel, out: Path, precision: str) -> list[dict[str, Any]]:
    actor = values.make_actor(precision=precision)
    args = (folders, shape, (6,), STEPS, out)
    return trainer_ranks.on_ranks(shape.num_ranks, gpu_ranks.train, *args, actor=actor)[0]


@pytest.mark.parametrize("name", list(map(needs_gpus, SHAPES)))
def test_fp32_equals_transformers_up_to_tf32(spawned, folders, plain, name, tmp_path) -> None:
    mask_T = values.make_block().loss_mask_T
    found = train(list(folders.values()), SHAPES[name], tmp_path, "fp32")
    for kind, run in zip(folders, found, strict=True):
        np.testing.assert_allclose(run["before"][mask_T], plain[kind]["logp"], rtol=TF32, atol=10 * TF32)
        for report, (loss, grad_norm) in zip(run["reports"], plain[kind]["steps"], strict=True):
            assert report["loss"] == pytest.approx(loss, rel=10 * TF32, abs=TF32), kind
            assert report["grad_norm"] == pytest.approx(grad_norm, rel=10 * TF32), kind


@pytest.mark.parametrize("name", list(map(needs_gpus, SHAPES)))
def test_bf16_is_as_near_as_transformers_own_bf16(spawned, folders, plain, name, tmp_path) -> None:
    block = values.make_block()
    found = train(list(folders.values()), SHAPES[name], tmp_path, "bf16")
    for (kind, folder), run in zip(folders.items(), found, strict=True):
        model = models.load_plain(folder).to("cuda", torch.bfloat16)
        with torch.no_grad():
            logp = logp_on_gpu(model, block)
        theirs = np.abs(torch.cat(logp).numpy() - plain[kind]["logp"]).mean()
        ours = np.abs(run["before"][block.loss_mask_T] - plain[kind]["logp"]).mean()
        assert ours <= 2 * theirs, kind


def logp_on_gpu(model: torch.nn.Module, block: Any) -> list[torch.Tensor]:
    def forward(token_T: torch.Tensor) -> Any:
        answer = model(token_T.to("cuda"))
        answer.logits = answer.logits.cpu()
        return answer

    return values.plain_logp(forward, block, 0.8)  # pyright: ignore[reportArgumentType]


def test_a_deterministic_run_repeats_bit_for_bit(spawned, folders, tmp_path) -> None:
    args = (folders["qwen3_moe"], TrainParallel(dp=1), (6,), STEPS, tmp_path)
    (first, second), *_ = trainer_ranks.on_ranks(1, gpu_ranks.train_twice, *args)
    assert first["reports"] == second["reports"]
    np.testing.assert_array_equal(first["after"], second["after"])
