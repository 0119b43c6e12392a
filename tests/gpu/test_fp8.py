"""Training in FP8 on GPUs, against the same in bf16.

Needs what requirements/gpu.txt lists and a CUDA device of compute capability 9.0 (tensorwise, blockwise) or
10.0 (tensorwise, mxfp8); shapes of two ranks need two. What Megatron is told, filler and refusals are tested
without a GPU: tests/unit/trainer/test_fp8.py.
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
from hybridrl.hosts import cuda

NUM_GPUS = torch.cuda.device_count()
CAPABILITY = torch.cuda.get_device_capability() if NUM_GPUS else (0, 0)
RECIPES = [name for name in cuda.recipes_of(CAPABILITY) if name != "none"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not RECIPES, reason="needs a CUDA device that multiplies in FP8"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None,
        reason="needs Transformer Engine, as requirements/gpu.txt lists it",
    ),
]

SHAPES = {"one_rank": TrainParallel(dp=1), "tp2": TrainParallel(dp=1, tp=2), "ep2": TrainParallel(dp=2, ep=2)}
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
ROUNDING = 0.06
"""Relative, of one product of numbers with three bits of mantissa."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [
        models.make_model(folder, "qwen3_yarn", num_hidden_layers=4, **SIZES),
        models.make_model(folder, "qwen3_moe", num_hidden_layers=4, moe_intermediate_size=128, **SIZES),
    ]


@pytest.fixture(scope="module")
def spawned() -> Any:
    """Ranks in new processes: a forked one cannot use CUDA that its parent looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_ranks, "_CONTEXT", multiprocessing.get_context("spawn"))
        yield


def train(folders: list[Path], shape: TrainParallel, out: Path, recipe: str, **options: Any) -> Any:
    actor = values.make_actor().model_copy(update={"fp8": recipe, **options})
    args = (folders, shape, (6,), 2, out)
    return trainer_ranks.on_ranks(shape.num_ranks, gpu_ranks.train, *args, actor=actor)[0]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", SHAPES)
def test_fp8_is_near_bf16_and_not_the_same(spawned, folders, name, recipe, recompute, tmp_path) -> None:
    shape = SHAPES[name]
    if shape.num_ranks > NUM_GPUS:
        pytest.skip(f"needs {shape.num_ranks} CUDA devices")
    kinds = folders[1:] if shape.ep > 1 else folders
    mask_T = values.make_block().loss_mask_T
    plain = train(kinds, shape, tmp_path / "bf16", "none", recompute=recompute)
    found = train(kinds, shape, tmp_path / "fp8", recipe, recompute=recompute)
    for fp8, bf16 in zip(found, plain, strict=True):
        difference = np.abs(fp8["before"][mask_T] - bf16["before"][mask_T])
        assert 0 < difference.mean() < ROUNDING * np.abs(bf16["before"][mask_T]).mean()
        for report, expected in zip(fp8["reports"], bf16["reports"], strict=True):
            assert report["grad_norm"] == pytest.approx(expected["grad_norm"], rel=4 * ROUNDING)


@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_at_both_ends_can_stay_bf16(spawned, folders, recipe, tmp_path) -> None:
    """The more layers stay, the nearer it is."""
    mask_T = values.make_block().loss_mask_T
    args = (folders[:1], SHAPES["one_rank"])
    (plain,) = train(*args, tmp_path / "bf16", "none")
    distance = []
    for layers in (0, 1):
        (found,) = train(*args, tmp_path / f"fp8-{layers}", recipe, bf16_layers=layers)
        distance.append(np.abs(found["before"][mask_T] - plain["before"][mask_T]).mean())
    assert distance[0] > distance[1] > 0
