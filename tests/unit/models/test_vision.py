"""The part of a model that reads pictures, as its config.json and transformers' module describe it."""

import json
from dataclasses import asdict

import pytest
import torch

from hybridrl.errors import LayoutError, ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models import spec
from hybridrl.models.fused_experts import as_stored, parts
from hybridrl.models.tiny_vision import vision_model
from hybridrl.models.vision import VisionSpec
from hybridrl.models.weights import refuse_unfit_weights

KINDS = {"qwen3_vl": 4, "qwen3_vl_moe": 4, "qwen2_5_vl": 14}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / request.param
    sizes = {"depth": 3, "patch_size": KINDS[request.param]}
    vision_model(path, request.param, 0, text={"num_hidden_layers": 4}, tower=sizes)
    return path


@pytest.fixture(scope="module")
def config(folder):
    return json.loads((folder / "config.json").read_text())


def changed(config, **changes):
    return {**json.loads(json.dumps(config)), **changes}


def test_the_tensors_of_the_table_are_those_of_transformers(folder) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    turned = {name: ".mlp.experts." in name for name, _ in model.named_parameters()}  # when they are loaded
    wanted = {n: tuple(p.mT.shape if turned[n] else p.shape) for n, p in model.named_parameters()}
    table = {name: shard.shape for name, shard in HFLayout(spec.read(folder)).shards(0).items()}
    found = as_stored(table, parts(spec.read(folder)))
    assert sorted(found.values()) == sorted(wanted.values())
    refuse_unfit_weights(folder, where="model.path")


def test_the_tower_is_whole_on_every_rank_of_the_first_stage(folder) -> None:
    model = spec.read(folder)
    layout = MegatronLayout(model, tp=2, pp=2)
    on_first, on_last = ({n for n in layout.shards(r) if n.startswith("visual.")} for r in (1, 2))
    assert on_first and not on_last
    whole = {n: s.shape for n, s in MegatronLayout(model).shards(0).items() if n in on_first}
    assert whole == {n: s.shape for n, s in layout.shards(1).items() if n in on_first}


def test_every_rank_of_an_engine_has_the_tower_whole(folder) -> None:
    alone, second = (SGLangLayout(spec.read(folder), tp=tp).shards(tp - 1) for tp in (1, 2))
    towers = [{n: s for n, s in shards.items() if n.startswith("visual.")} for shards in (alone, second)]
    assert towers[0] == towers[1] and "visual.blocks.0.attn.qkv_proj.weight" in towers[0]


def test_features_are_added_on_the_first_stage_only(tmp_path) -> None:
    vision_model(tmp_path / "deep", "qwen3_vl", 0, tower={"depth": 3})
    with pytest.raises(LayoutError, match="the first 2 layers add features of pictures.*has 1"):
        MegatronLayout(spec.read(tmp_path / "deep"), pp=2)


def test_angles_turn_along_three_axes(config) -> None:
    found = spec.from_config(config, where="config.json")
    assert found.rope_sections == (2, 3, 3) and found.rope_scaling is None
    assert found.rope_interleaved == found.family.startswith("qwen3_vl")


def test_older_files_have_the_keys_of_the_text_model_beside_vision_config(config) -> None:
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    flat = {key: value for key, value in config.items() if key != "text_config"} | text
    flat |= {"model_type": config["model_type"], "rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    assert spec.from_config(flat, where="config.json") == spec.from_config(config, where="config.json")


@pytest.mark.parametrize("root", [True, False])
def test_a_tied_output_layer_is_tied_wherever_the_file_says_so(config, root) -> None:
    text = {**config["text_config"], "tie_word_embeddings": not root}
    assert spec.from_config(changed(config, text_config=text, tie_word_embeddings=root), where="").tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": None}, "has no vision_config"),
        ({"depth": 0}, "vision_config.depth = 0 in config.json is not a whole number"),
        ({"patch_size": "14"}, "vision_config.patch_size = '14'"),
        ({"out_hidden_size": 32}, "out_hidden_size = 32 is not hidden_size = 64"),
        ({"image_token_id": None}, "image_token_id = None in config.json is not a token id"),
        ({"deepstack_visual_indexes": [3]}, "names layer 3 of a tower with depth = 3"),
        (
            {"mrope_section": [1, 1, 1]},
            r"mrope_section = \[1, 1, 1\] does not add up to half of head_dim = 16",
        ),
        ({"hidden_size": "64"}, 'hidden_size = "64" in config.json'),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(config, changes, message) -> None:
    bad = changed(config)
    for key, value in changes.items():
        if key == "mrope_section":
            bad["text_config"]["rope_parameters"][key] = value
        elif key == "hidden_size":
            bad["text_config"][key] = value
        elif key in ("vision_config", "image_token_id"):
            bad[key] = value
        else:
            bad["vision_config"][key] = value
    with pytest.raises(ModelError, match=message):
        spec.from_config(bad, where="config.json")


def test_a_text_model_of_one_that_reads_pictures_is_not_read_as_a_plain_one(config) -> None:
    text = {**config["text_config"], "architectures": ["Qwen3ForCausalLM"]}
    with pytest.raises(ModelError, match="mrope_section"):
        spec.from_config(text, where="config.json")


def test_a_spec_survives_its_record(folder) -> None:
    found = spec.read(folder)
    record = json.loads(json.dumps(asdict(found)))["vision"]
    again = VisionSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})
    assert again == found.vision
