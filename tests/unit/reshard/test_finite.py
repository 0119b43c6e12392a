"""NaN and infinity in weights are refused by name wherever they are, also where no bounded look reaches."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridrl.errors import ModelError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import weights
from hybridrl.models.spec import read
from hybridrl.models.tiny import random_model
from hybridrl.reshard.checkpoint import load_hf

NAME = "model.layers.1.mlp.down_proj.weight"


def loaded(folder: Path, *, rank: int = 0, tp: int = 1, dtype: torch.dtype = torch.float32) -> None:
    layout = MegatronLayout.of(read(folder), on_gpu=False, tp=tp)
    tensors = {name: torch.empty(s.shape, dtype=dtype) for name, s in layout.shards(rank).items()}
    load_hf(folder, layout, rank, tensors)


@pytest.fixture
def poisoned(tmp_path: Path):
    random_model(tmp_path / "model", "qwen3", 0)

    def write(value: float, place: int = -1) -> Path:
        file = tmp_path / "model" / "model.safetensors"
        tensors = load_file(file)
        tensors[NAME].view(-1)[place] = value
        save_file(tensors, file, {"format": "pt"})
        return tmp_path / "model"

    return write


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_named(poisoned, value: float) -> None:
    folder = poisoned(0.5)
    loaded(folder)
    with pytest.raises(ModelError, match=f"{NAME} holds NaN or infinity 1 time  .*model"):
        loaded(poisoned(value))


def test_the_last_value_is_seen_where_the_look_before_the_start_ends_earlier(poisoned, monkeypatch) -> None:
    folder = poisoned(float("nan"))
    monkeypatch.setattr(weights, "_READ_BYTES", 1000)
    weights.refuse_unfit_weights(folder, where="model.path")
    with pytest.raises(ModelError, match=NAME):
        loaded(folder)


def test_the_rank_that_holds_it_refuses_it(poisoned) -> None:
    folder = poisoned(float("nan"))  # the last column: that of the last rank
    loaded(folder, rank=0, tp=2)
    with pytest.raises(ModelError, match=NAME):
        loaded(folder, rank=1, tp=2)


def test_a_value_that_is_too_large_for_the_dtype_is_said_to_be(poisoned) -> None:
    folder = poisoned(1e6)
    loaded(folder, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="weights are infinite in float16, and finite in the checkpoint"):
        loaded(folder, dtype=torch.float16)


def test_values_whose_sum_overflows_are_finite(poisoned) -> None:
    folder = poisoned(3e38, 0)
    poisoned(3e38, 1)
    loaded(folder)
