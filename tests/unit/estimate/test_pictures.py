"""What pictures add to an estimate."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.memory import host_bytes, logprobs, training
from hybridrl.estimate.pictures import pixel_bytes, step_pixels, tower_forward, tower_kept, tower_weights
from hybridrl.estimate.setting import Setting
from hybridrl.models.published import read_published

CONFIGS = Path(__file__).parents[3] / "configs"
QWEN3, QWEN2_5 = "geo3k_qwen3vl_8b", "grpo_qwen25vl_7b"


def setting(name: str, *overrides: str) -> Setting:
    cfg = load(CONFIGS / f"{name}.yaml", list(overrides)).config
    model = read_published(cfg.model.path)
    assert model is not None
    return Setting.of(cfg, model, GPUS["h100"])


@pytest.mark.parametrize(("name", "millions"), [(QWEN3, 576.4), (QWEN2_5, 676.6)])
def test_the_tower_has_the_parameters_of_the_published_model(name: str, millions: float) -> None:
    assert tower_weights(setting(name).model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_token_is_32_x_32_pixels_of_3_bytes() -> None:
    found = setting(QWEN3)
    assert pixel_bytes(found, 10) == 10 * 32 * 32 * 3
    assert step_pixels(found) == 256 * 768 * 32 * 32 * 3


def test_a_run_on_text_has_none_of_it() -> None:
    text = setting(QWEN3, "data.images=null", "actor.vision={}")
    assert tower_kept(text) == tower_forward(text) == step_pixels(text) == 0
    with_pictures = setting(QWEN3)
    assert training(with_pictures, 0).activations > training(text, 0).activations
    assert host_bytes(with_pictures) - host_bytes(text) == 256 * 1536 * 32 * 32 * 3


def test_a_tower_without_recomputation_keeps_every_layer_and_a_frozen_one_none() -> None:
    again, kept = setting(QWEN3), setting(QWEN3, "actor.recompute=none")
    frozen = setting(QWEN3, "actor.vision={mode: frozen}", "actor.recompute=none")
    assert tower_kept(kept) > 8 * tower_kept(again)
    assert tower_kept(frozen) == tower_forward(kept) < tower_kept(again)
    assert logprobs(kept, 0).activations >= tower_forward(kept)
