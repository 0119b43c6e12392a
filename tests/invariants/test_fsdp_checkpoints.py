"""A checkpoint of any parallel layout goes on with any other of either backend, with the same next loss."""

from pathlib import Path
from typing import Any

import fsdp_scenarios as scenarios
import numpy as np
import pytest
import trainer_models
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import LoraConfig, TrainParallel

RELATIVE = 2e-6
SLOW = pytest.mark.slow
MEGATRON = {
    "tp2 pp2": TrainParallel(tp=2, pp=2, dp=1),
    "ep2": TrainParallel(ep=2, dp=2),
    "tp2": TrainParallel(tp=2, dp=1),
}
FSDP = {
    "x2": TrainParallel(dp=2),
    "x3": TrainParallel(dp=3),
    "hsdp 2x2": TrainParallel(dp=4, shard=2),
    "x2 tp2": TrainParallel(tp=2, dp=2),
    "x2 cp2": TrainParallel(cp=2, dp=2),
}
LORA = LoraConfig(rank=4, alpha=8.0)


def group(name: str, **changes: Any) -> Any:
    backend = "megatron" if name in MEGATRON else "fsdp"
    return (MEGATRON | FSDP)[name], scenarios.actor(backend).model_copy(update=changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "deep": values.make_model(folder, "deep"),
        "qwen3_moe": trainer_models.make_model(folder, "qwen3_moe"),
    }


def assert_goes_on(model: Path, before: Any, after: Any, saved: Path) -> None:
    through = on_ranks(before[0].num_ranks, scenarios.second_batch, model, before, saved)[0]
    for rank in on_ranks(after[0].num_ranks, scenarios.continued, model, after, saved):
        assert "the checkpoint was made with" in rank["notes"][0]
        first, *later = zip(rank["reports"], through["reports"], strict=True)
        for name in ("loss", "grad_norm", "lr"):
            assert first[0][name] == pytest.approx(first[1][name], rel=RELATIVE, abs=1e-8), name
            for found, expected in later:
                assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        ("deep", "tp2 pp2", "x2"),
        ("deep", "x2", "tp2 pp2"),
        pytest.param("deep", "x3", "x2 tp2", marks=SLOW),
        pytest.param("deep", "tp2 pp2", "hsdp 2x2", marks=SLOW),
        pytest.param("deep", "hsdp 2x2", "x3", marks=SLOW),
        pytest.param("deep", "x2 tp2", "tp2 pp2", marks=SLOW),
        pytest.param("deep", "x2 cp2", "x2", marks=SLOW),
        pytest.param("qwen3_moe", "ep2", "x3", marks=SLOW),
        pytest.param("qwen3_moe", "x2 tp2", "ep2", marks=SLOW),
    ],
)
def test_the_next_loss_is_the_same(models, tmp_path: Path, model: str, before: str, after: str) -> None:
    assert_goes_on(models[model], group(before), group(after), tmp_path / "saved")


@SLOW
@pytest.mark.parametrize(("before", "after"), [("tp2", "x3"), ("x2 tp2", "tp2"), ("hsdp 2x2", "x2")])
def test_adapters_go_on(models, tmp_path: Path, before: str, after: str) -> None:
    groups = group(before, lora=LORA), group(after, lora=LORA)
    assert_goes_on(models["deep"], *groups, tmp_path / "saved")


@SLOW
@pytest.mark.parametrize("model", ["deep", "qwen3_moe"])
@pytest.mark.parametrize("name", FSDP)
def test_the_same_layout_goes_on_bit_for_bit(models, tmp_path: Path, model: str, name: str) -> None:
    own, saved = group(name), tmp_path / "saved"
    through = on_ranks(own[0].num_ranks, scenarios.second_batch, models[model], own, saved)
    again = on_ranks(own[0].num_ranks, scenarios.continued, models[model], own, saved)
    for found, expected in zip(again, through, strict=True):
        assert found["notes"] == [] and found["reports"] == expected["reports"]
        for weight, values_of in expected["weights"].items():
            np.testing.assert_array_equal(found["weights"][weight], values_of)


@SLOW
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize("name", ["x2", "x2 tp2"])
@pytest.mark.parametrize("kept", ["optimizer", "all"])
def test_what_is_kept_on_the_host_goes_on_bit_for_bit(models, tmp_path: Path, kept, name, lora) -> None:
    """And it takes the steps of a run that keeps nothing there."""
    usual, own = group(name, lora=lora), group(name, lora=lora, keep_on_host=kept)
    play = (own[0].num_ranks, scenarios.second_batch, models["deep"])
    expected = on_ranks(*play, usual, tmp_path / "usual")
    through = on_ranks(*play, own, tmp_path / "saved")
    again = on_ranks(own[0].num_ranks, scenarios.continued, models["deep"], own, tmp_path / "saved")
    for found in (through, again):
        for rank, other in zip(found, expected, strict=True):
            assert rank["reports"] == other["reports"]
            for weight, values_of in other["weights"].items():
                np.testing.assert_array_equal(rank["weights"][weight], values_of)
