"""Keys about pictures: what they need of the model, and what they exclude."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.config.rules import check
from hybridrl.config.rules.base import RuleContext
from hybridrl.errors import ModelError
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
        ("judge={path: folder}", "judge with data.images: it would not see the pictures"),
        ("reward_model=folder", "reward_model with data.images: it would not see the pictures"),
        (
            "reference.parallel={tp: 1}",
            "reference.parallel with data.images: dedicated ranks get no pictures",
        ),
        ("actor.lora={}", "actor.lora with data.images: layers of a tower take no adapters"),
        ("program={command: [a]}", "program with data.images: what a program asks is text"),
        ("frozen={path: folder, agents: [1]}", "frozen with data.images: it would not see the pictures"),
        (
            "algorithm.observations.coefficient=0.1",
            "algorithm.observations with data.images: the placeholders of pictures are no words",
        ),
        ("actor.overlap=true", "actor.overlap = true with data.images: a microbatch without pictures"),
        ("actor.parallel.vpp=2", "actor.parallel.vpp = 2 with data.images: features are placed on the first"),
        (
            "rollout.swap=in_flight",
            "rollout.swap = in_flight with data.images: features of a running request",
        ),
        ("data.images.max_tokens=8", "data.images.max_tokens = 8 leaves no room for text"),
    ],
)
def test_what_does_not_know_pictures_is_refused_by_its_key(models, override, message) -> None:
    found = [error for error in errors(models, override) if message in error]
    assert len(found) == 1 and override.split("=")[0].split(".")[0] in found[0]


def test_episodes_may_show_pictures(models) -> None:
    environment = "environment={name: shape_turns:Shapes, max_turns: 3}"
    assert errors(models, environment, "rollout.max_context_tokens=32") == []


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


def test_the_fsdp_backend_takes_the_model_and_overlaps_as_always(models) -> None:
    from hybridrl.layout.fsdp import LAYOUT

    LAYOUT.refuse_unbuildable(models["vision"], where="model")
    assert errors(models, "actor.backend=fsdp", "actor.overlap=true") == []


def test_vllm_refuses_the_model(models) -> None:
    from hybridrl.rollout.vllm.kind import VLLM

    found = [str(error) for error in VLLM().refuse(load(SHAPES).config, models["vision"])]
    assert any("models that read pictures, as qwen3_vl, run on SGLang only" in error for error in found)


def test_a_model_that_sglang_would_compute_otherwise_is_refused(tmp_path) -> None:
    from hybridrl.models.tiny_vision import vision_model
    from hybridrl.rollout.sglang.kind import SGLang

    for depth, wanted in ((3, "names 2 layers, and SGLang adds the features of 3"), (4, None)):
        sizes = {"text": {"num_hidden_layers": 4}, "tower": {"depth": depth}}
        vision_model(tmp_path / str(depth), "qwen3_vl_moe", 0, **sizes)
        found = [
            str(error) for error in SGLang().refuse(load(SHAPES).config, spec.read(tmp_path / str(depth)))
        ]
        assert found == [] if wanted is None else len(found) == 1 and wanted in found[0]


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("Gemma3ForConditionalGeneration", "attend to each other in both directions"),
        ("InternVLForConditionalGeneration", "no model table describes how"),
    ],
)
def test_other_models_that_read_pictures_are_refused_with_the_reason(architecture, why) -> None:
    config = {"architectures": [architecture], "text_config": {}, "vision_config": {"hidden_size": 8}}
    with pytest.raises(ModelError, match=f"{architecture} reads pictures, and .*{why}"):
        spec.from_config(config, where="config.json")
