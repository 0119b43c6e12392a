"""Keys that config.json leaves out, and values of another type or that contradict each other."""

import json
from pathlib import Path

import pytest

from hybridrl.errors import ModelError
from hybridrl.models.spec import from_config, read

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "intermediate_size": 96,
    "vocab_size": 151,
}
LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 48}
CLASSES = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Qwen3ForCausalLM": ("Qwen3Config", {}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {}),
    "MixtralForCausalLM": ("MixtralConfig", {}),
    "Gemma2ForCausalLM": ("Gemma2Config", {}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {}),
    "DeepseekV2ForCausalLM": ("DeepseekV2Config", LATENT | {"num_experts_per_tok": 2}),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", LATENT),
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_an_absent_key_has_the_default_of_transformers_or_is_refused(architecture: str) -> None:
    import transformers

    name, sizes = CLASSES[architecture]
    make, named = getattr(transformers, name), {"architectures": [architecture]}
    whole = json.loads(make(**SIZES | sizes).to_json_string(use_diff=False)) | named
    read_as_whole = from_config(whole, where="here")
    num_defaults = 0
    for key in whole.keys() - {"architectures"}:
        partial = {name: value for name, value in whole.items() if name != key}
        try:
            found = from_config(partial, where="here")
        except ModelError as refused:
            assert "here" in str(refused)
            continue
        expected = json.loads(make(**partial).to_json_string(use_diff=False)) | named
        assert found == from_config(expected, where="here"), key
        assert found.rope_scaling == read_as_whole.rope_scaling
        num_defaults += 1
    assert num_defaults > 20


def folder_with(tmp_path: Path, **changes: object) -> Path:
    config = {"architectures": ["Qwen3ForCausalLM"], **SIZES, "num_key_value_heads": 4}
    config |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 512, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


WRONG = [
    ("hidden_size", "128"),
    ("num_hidden_layers", 2.5),
    ("num_attention_heads", 0),
    ("num_attention_heads", -4),
    ("vocab_size", True),
    ("num_key_value_heads", [4]),
    ("rms_norm_eps", "1e-6"),
    ("rms_norm_eps", float("nan")),
    ("rope_theta", -1),
    ("tie_word_embeddings", "false"),
    ("attention_bias", 1),
    ("architectures", "Qwen3ForCausalLM"),
    ("architectures", [7]),
    ("num_nextn_predict_layers", "1"),
    ("rope_scaling", "linear"),
    ("rope_parameters", [1]),
    ("hidden_act", 3),
    ("dtype", "int8"),
    ("torch_dtype", 16),
    ("quantization_config", "fp8"),
    ("head_dim", "wide"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    read(folder_with(tmp_path))
    with pytest.raises(ModelError) as refused:
        read(folder_with(tmp_path, **{key: value}))
    assert str(refused.value).startswith(f"{key} = {json.dumps(value)} in config.json is not ")
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_theta": "x"}, 'rope_theta = "x" in config.json is not a number above 0'),
        ({"rope_type": 3}, "rope_type = 3 in config.json is not text"),
        ({"full_attention": "x"}, 'full_attention = "x" in config.json is not an object'),
        ({"full_attention": {"rope_theta": [1]}}, "full_attention.rope_theta = [1] in config.json is not"),
        ({"sliding_attention": {"rope_theta": "x"}}, 'sliding_attention.rope_theta = "x" in config.json'),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_a_rope_value_of_another_type_is_named(tmp_path: Path, key: str, rope: object, said: str) -> None:
    with pytest.raises(ModelError) as refused:
        read(folder_with(tmp_path, **{key: rope}))
    assert str(refused.value).startswith(f"{key}.{said}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads = 32 is no multiple of num_key_value_heads = 3"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 8},
            "= 4 is no multiple of num_key_value_heads = 8",
        ),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 4},
            "num_experts_per_tok = 4 is more than the 2 experts",
        ),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"vocab_size": None}, "config.json has no 'vocab_size'"),
        ({"rms_norm_eps": None}, "config.json has no 'rms_norm_eps'"),
    ],
)
def test_what_contradicts_or_is_null_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        read(folder_with(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[]", '"x"', "7", "null", "{", "", "[" * 50_000])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config.json is .*config\.json"):
        read(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelError, match="config.json is not JSON"):
        read(tmp_path)
