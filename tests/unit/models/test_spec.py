"""Reading config.json, and the tables against the models that transformers builds from it."""

import json
import subprocess
import sys

import pytest

from hybridrl.errors import ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.models.spec import count, parameters, read

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 151,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def folder_with(tmp_path, **changes):
    config = {key: value for key, value in (QWEN3 | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_reads_sizes_and_switches(tmp_path):
    spec = read(folder_with(tmp_path))
    assert (spec.family, spec.hidden_size, spec.num_layers, spec.num_heads) == ("qwen3", 64, 3, 4)
    assert (spec.num_kv_heads, spec.head_dim, spec.ffn_size, spec.vocab_size) == (2, 32, 96, 151)
    assert spec.tied and spec.qk_norm and not spec.qkv_bias
    assert spec.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 1e6}, 1e6, None),
        ({"rope_theta": 1e6, "rope_scaling": None}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
            5e5,
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0}},
            5e5,
            {"rope_type": "yarn", "factor": 4.0},
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}},
            5e5,
            {"rope_type": "llama3", "factor": 8.0},
        ),
    ],
)
def test_rope_in_both_spellings(tmp_path, keys, theta, scaling):
    spec = read(folder_with(tmp_path, **keys))
    assert (spec.rope_theta, spec.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("architecture", "head_dim", "expected"),
    [
        ("LlamaForCausalLM", None, 16),
        ("Qwen2ForCausalLM", None, 16),
        ("Qwen3ForCausalLM", None, 128),
        ("LlamaForCausalLM", 24, 24),
    ],
)
def test_head_dim_falls_back_as_in_transformers(tmp_path, architecture, head_dim, expected):
    assert read(folder_with(tmp_path, architectures=[architecture], head_dim=head_dim)).head_dim == expected


@pytest.mark.parametrize(
    ("architecture", "attention_bias", "qkv", "out"),
    [
        ("LlamaForCausalLM", False, False, False),
        ("LlamaForCausalLM", True, True, True),
        ("Qwen2ForCausalLM", False, True, False),
        ("Qwen3ForCausalLM", True, True, True),
    ],
)
def test_biases_by_family(tmp_path, architecture, attention_bias, qkv, out):
    spec = read(folder_with(tmp_path, architectures=[architecture], attention_bias=attention_bias))
    assert (spec.qkv_bias, spec.attention_out_bias) == (qkv, out)


def test_kv_heads_default_to_heads(tmp_path):
    assert read(folder_with(tmp_path, num_key_value_heads=None)).num_kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel.*LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        ),
        ({"architectures": None}, "no model table for architecture none"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "mlp_bias"),
    ],
)
def test_unsupported_models_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read(folder_with(tmp_path, **changes))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read(tmp_path)


def test_reading_a_spec_imports_no_torch(tmp_path):
    code = (
        "import sys; from hybridrl.models.spec import read; "
        f"read({str(folder_with(tmp_path))!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"attention_bias": True, "head_dim": 24}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 32}),
        ("Qwen3Config", {"attention_bias": True}),
    ],
)
def test_tables_name_what_transformers_saves(tmp_path, config_class, options, tied):
    import torch
    import transformers

    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 151,
    }
    config = getattr(transformers, config_class)(**sizes, **options, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    spec = read(tmp_path)
    saved = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del saved["lm_head.weight"]
    assert {name: shard.shape for name, shard in HFLayout(spec).shards(0).items()} == saved
    assert count(spec) == sum(p.numel() for p in model.parameters())


def test_every_block_of_a_row_has_one_checkpoint_tensor(tmp_path):
    for architecture in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        for parameter in parameters(read(folder_with(tmp_path, architectures=[architecture]))):
            row = parameter.row
            assert len(row.hf) == len(row.rows)
            names = [row.name, *row.hf, row.megatron.tensor, row.sglang.tensor]
            assert [("*" in name) for name in names] == [row.stage == "layers"] * len(names)
