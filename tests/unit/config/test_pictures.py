"""Keys about pictures: what they need of the model, and what they exclude."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.config.rules import check
from hybridrl.config.rules.base import RuleContext
from hybridrl.models import spec
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.models.tiny_vision import qwen3_vl_shapes

SHAPES = Path(__file__).parents[3] / "configs" / "shapes_vlm.yaml"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    qwen3_vl_shapes(folder / "vision", 0)
    qwen3_arithmetic(folder / "text", 0)
    return {kind: spec.read(folder / kind) for kind in ("vision", "text")}


def errors(models, *overrides, model="vision"):
    context = RuleContext(num_gpus=0, spec=models[model])
    return [str(error) for error in check(load(SHAPES, list(overrides)), context)]


def test_the_config_is_accepted(models) -> None:
    assert errors(models) == []


@pytest.mark.parametrize("mode", ["frozen", "projector"])
def test_parts_of_the_tower_can_be_frozen(models, mode) -> None:
    assert errors(models, f"actor.vision.mode={mode}") == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judge={path: folder}", "judge: it is not supported together with data.images yet"),
        ("reward_model=folder", "reward_model: it is not supported together with data.images yet"),
        ("reference.parallel={tp: 1}", "reference.parallel: it is not supported"),
        ("actor.lora={}", "actor.lora: it is not supported"),
        ("actor.overlap=true", "actor.overlap = true: it is not supported"),
        ("actor.parallel.vpp=2", "actor.parallel.vpp = 2: it is not supported"),
        ("rollout.swap=in_flight", "rollout.swap = in_flight: it is not supported"),
        ("data.images.max_tokens=8", "data.images.max_tokens = 8 leaves no room for text"),
    ],
)
def test_what_does_not_know_pictures_is_refused_by_its_key(models, override, message) -> None:
    found = [error for error in errors(models, override) if message in error]
    assert len(found) == 1 and override.split("=")[0].split(".")[0] in found[0]


def test_a_model_of_text_takes_no_pictures(models) -> None:
    (found,) = errors(models, model="text")
    assert "data.images is set" in found and "reads text only" in found
    assert any(
        "actor.vision is set" in error for error in errors(models, "actor.vision.mode=frozen", model="text")
    )


def test_a_tower_without_pictures_is_not_trained_and_the_key_is_refused(models) -> None:
    found = errors(models, "data.images=null", "actor.vision.mode=frozen")
    assert any("actor.vision has no effect: data.images is not set" in error for error in found)


def test_a_learning_rate_of_what_is_frozen_is_refused(models) -> None:
    assert errors(models, "actor.vision={mode: projector, lr: 1.0e-4}") == []
    (found,) = errors(models, "actor.vision={mode: frozen, lr: 1.0e-4}")
    assert "actor.vision.lr = 0.0001 has no effect" in found


def test_a_critic_is_refused(models) -> None:
    from hybridrl.algorithms.rules import algorithm_fits_the_run

    loaded = load(SHAPES, ["algorithm.estimator.name=gae"])
    found = [str(e) for e in algorithm_fits_the_run(loaded, RuleContext(num_gpus=0, spec=models["vision"]))]
    assert any("data.images is set, and the algorithm needs value" in error for error in found)


def test_the_fsdp_backend_and_vllm_refuse_the_model(models) -> None:
    from hybridrl.errors import ModelError
    from hybridrl.layout.fsdp import LAYOUT
    from hybridrl.rollout.vllm.kind import VLLM

    with pytest.raises(ModelError, match="this model is qwen3_vl"):
        LAYOUT.refuse_unbuildable(models["vision"], where="model")
    found = [str(error) for error in VLLM().refuse(load(SHAPES).config, models["vision"])]
    assert any("models that read pictures, as qwen3_vl, run on SGLang only" in error for error in found)
