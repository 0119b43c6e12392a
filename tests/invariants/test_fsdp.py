"""FSDP2 on any number of ranks computes what Megatron does, and each reads the other's checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_scenarios as scenarios
import trainer_values as values
from safetensors.torch import load_file
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

FAMILIES = ("qwen3", "llama_tied", "qwen2")
STEPS = 3
RELATIVE = 2e-6


def fsdp(**options: Any) -> Any:
    return values.make_actor(**options).model_copy(update={"backend": "fsdp"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [values.make_model(folder, family) for family in FAMILIES]


@pytest.fixture(scope="module")
def megatron(models, tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("megatron")
    return on_ranks(1, scenarios.train, models, (1, 1, 1), (6,), STEPS, out)[0]


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda dp: f"x{dp}")
def ranks(request, models, tmp_path_factory) -> list[list[dict[str, Any]]]:
    out, shape = tmp_path_factory.mktemp("fsdp"), TrainParallel(dp=request.param)
    return on_ranks(request.param, scenarios.train, models, shape, (6,), STEPS, out, actor=fsdp())


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def test_log_probabilities_losses_and_gradient_norms_are_megatrons(ranks, megatron) -> None:
    for rank in ranks:
        for found, expected in zip(rank, megatron, strict=True):
            assert_close(found["before"], expected["before"])
            for report, other in zip(found["reports"], expected["reports"], strict=True):
                for name in ("loss", "grad_norm", "lr"):
                    assert report[name] == pytest.approx(other[name], rel=RELATIVE), name


def test_the_first_ratio_is_exactly_one_and_every_rank_reports_the_same(ranks) -> None:
    for rank in ranks:
        for found, first in zip(rank, ranks[0], strict=True):
            assert found["reports"] == first["reports"]
            assert found["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
            assert found["reports"][1]["metrics"]["actor/ratio_max_abs_err"] > 0.0


def test_exported_weights_are_megatrons(ranks, megatron) -> None:
    for found, expected in zip(ranks[0], megatron, strict=True):
        one, other = (load_file(run["export"] / "model.safetensors") for run in (found, expected))
        assert one.keys() == other.keys()
        for name, weight in one.items():
            assert_close(weight.numpy(), other[name].numpy())
