"""A model without a table is described by transformers' own modules."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridrl.errors import ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.loader import LoaderLayout
from hybridrl.models.spec import count, from_config, parameters, read, with_one_label
from hybridrl.models.tiny import olmo2_arithmetic
from hybridrl.models.weights import headers, refuse_unfit_weights

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 61,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NAMES = {
    "olmo2": "Olmo2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi": "PhiForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}


def config(kind: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [NAMES[kind]], "model_type": kind, **SIZES, **changes}


@pytest.fixture(scope="module")
def olmo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "olmo2"
    olmo2_arithmetic(folder, 0)
    return folder


def test_every_tensor_of_the_checkpoint_is_a_parameter(olmo: Path) -> None:
    spec = read(olmo)
    named = {name for one in parameters(spec) for name, _ in one.checkpoint_tensors()}
    assert not spec.has_table and named == headers(olmo).keys()
    shapes = {name: shard.shape for name, shard in HFLayout(spec).shards(0).items()}
    assert shapes == {name: tensor.shape for name, tensor in headers(olmo).items()}
    refuse_unfit_weights(olmo, where="model.path")


def test_sizes_are_those_of_config_json(olmo: Path) -> None:
    spec = read(olmo)
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads) == (128, 2, 4, 2)
    assert (spec.head_dim, spec.ffn_size, spec.vocab_size, spec.tied) == (32, 384, 16, False)
    assert spec.layers() == range(2) and spec.family == "olmo2"


def test_a_tied_output_layer_is_no_tensor() -> None:
    apart, tied = (from_config(config("olmo2", tie_word_embeddings=tie), where="x") for tie in (False, True))
    assert (apart.tied, tied.tied) == (False, True)
    assert count(apart) - count(tied) == 61 * 32
    assert {name for name, _ in apart.tensors} - {name for name, _ in tied.tensors} == {"lm_head.weight"}


def test_a_reward_model_has_a_value_head_in_place_of_the_vocabulary() -> None:
    policy, judge = config("olmo2"), with_one_label(config("olmo2"))
    names = [parameter.name for parameter in parameters(from_config(judge, where="x"))]
    kept = [one.name for one in parameters(from_config(policy, where="x")) if one.name != "lm_head.weight"]
    assert names == [*kept, "value_head"]


def test_kinds_of_layers_that_are_no_neighbours_have_parameters_of_their_own() -> None:
    spec = from_config(config("olmo2"), where="x")
    odd = tuple(t for t in spec.tensors if ".layers.1.self_attn.q_norm" not in t.name)
    q_norms = [p.layers for p in parameters(spec) if "q_norm" in p.name]
    assert q_norms == [range(3)]
    found = [p.layers for p in parameters(replace(spec, tensors=odd)) if "q_norm" in p.name]
    assert found == [range(1), range(2, 3)]


@pytest.mark.parametrize("tp", [1, 2])
def test_an_engine_is_assumed_to_share_matrices_evenly(tp: int) -> None:
    spec = from_config(config("olmo2"), where="x")
    layout = LoaderLayout(spec, tp)
    shapes = [{name: shard.shape for name, shard in layout.shards(rank).items()} for rank in range(tp)]
    assert sum(shape["lm_head.weight"][0] for shape in shapes) == 61
    assert all(shape["model.norm.weight"] == (32,) for shape in shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no_such_kind"}, "transformers cannot build it from its config.json"),
        ({"model_type": None}, "no model_type by which transformers would know it"),
        ({"architectures": ["OursForCausalLM"]}, "transformers' olmo2 is a Olmo2ForCausalLM"),
        ({"quantization_config": {"quant_method": "fp8"}}, "the checkpoint is quantised"),
        ({"hidden_size": "many"}, "hidden_size"),
        (config("phi"), "its output layer is not lm_head without a bias"),
        (config("olmoe", num_experts=4), "experts.gate_up_proj is neither a matrix nor a vector"),
    ],
)
def test_what_cannot_be_described_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("olmo2") | changes))
    with pytest.raises(ModelError, match=message):
        read(tmp_path)


def test_weights_of_other_shapes_are_refused(olmo: Path, tmp_path: Path) -> None:
    for file in olmo.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = json.loads((olmo / "config.json").read_text()) | {"intermediate_size": 400}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ModelError, match=r"mlp.gate_proj.weight is \[384, 128\] .* \[400, 128\]"):
        refuse_unfit_weights(tmp_path, where="model.path")
