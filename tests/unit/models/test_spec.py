"""Reading config.json, and the tables against the models that transformers builds from it."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
from model_values import FAMILIES, WITH_TOWER, tiny

from hybridrl.errors import ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.models import families as families_package
from hybridrl.models.spec import count, family_of, read

FAMILY_FILES = [
    path for path in Path(families_package.__path__[0]).glob("*.py") if not path.name.startswith("_")
]

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
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
LATENT = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_group": 1,
    "topk_group": 1,
}
V2 = {"architectures": ["DeepseekV2ForCausalLM"]}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
GEMMA = {"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}


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


@pytest.mark.parametrize(("key", "plain"), [("num_experts", 0), ("num_local_experts", 0), ("num_experts", 2)])
def test_reads_experts_under_either_key(tmp_path, key, plain):
    experts = MOE | {"num_experts": None} | {key: 4, "mlp_only_layers": list(range(plain))}
    spec = read(folder_with(tmp_path, **experts))
    assert (spec.num_experts, spec.experts_per_token, spec.expert_ffn_size) == (4, 2, 48)
    assert (spec.layers("dense"), spec.layers("moe")) == (range(plain), range(plain, 3))


@pytest.mark.parametrize(
    ("topk_method", "router_bias"), [(None, True), ("noaux_tc", True), ("greedy", False)]
)
def test_reads_latent_attention_and_shared_experts(tmp_path, topk_method, router_bias):
    spec = read(folder_with(tmp_path, **LATENT, topk_method=topk_method))
    assert spec.latent and spec.router_bias == router_bias
    assert (spec.q_lora_rank, spec.kv_lora_rank, spec.nope_head_dim, spec.v_head_dim) == (24, 16, 8, 6)
    assert (spec.shared_ffn_size, spec.first_moe_layer, spec.layers("dense")) == (96, 1, range(1))
    assert spec.kv_cache_size == 3 * (16 + 4), "compressed, and the rotary key"


def test_a_model_with_windows_is_read_by_its_full_attention(tmp_path):
    rope = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}
    rope["sliding_attention"] = {"rope_theta": 1e4, "rope_type": "default"}
    gemma = GEMMA | {"architectures": ["Gemma3ForCausalLM"], "rope_parameters": rope}
    spec = read(folder_with(tmp_path, **gemma, tie_word_embeddings=None))
    assert spec.tied and spec.qk_norm
    assert (spec.rope_theta, spec.rope_scaling) == (1e6, {"rope_type": "linear", "factor": 8.0})


@pytest.mark.parametrize(
    ("kinds", "pattern", "windowed"),
    [
        (None, None, (0, 2)),
        (None, 3, (0, 1)),
        (["full_attention", "sliding_attention", "sliding_attention"], None, (1, 2)),
    ],
)
def test_reads_which_layers_of_a_gemma_have_a_window(tmp_path, kinds, pattern, windowed):
    changes = {"layer_types": kinds, "sliding_window_pattern": pattern, "sliding_window": 16}
    spec = read(folder_with(tmp_path, **GEMMA, **changes, query_pre_attn_scalar=4))
    assert (spec.window, spec.windowed_layers, spec.query_scale) == (16, windowed, 0.5)
    assert (spec.attention_soft_cap, spec.output_soft_cap) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("changes", "score", "normalizes", "groups"),
    [
        (MOE, "softmax", False, (1, 1)),
        (MOE | {"norm_topk_prob": True}, "softmax", True, (1, 1)),
        (LATENT | {"n_group": 4, "topk_group": 2}, "sigmoid", True, (4, 2)),
        (LATENT | V2 | {"n_group": 4, "topk_group": 2}, "softmax", False, (1, 1)),
        (LATENT | V2 | GROUPS, "softmax", False, (4, 2)),
    ],
)
def test_reads_how_a_router_chooses(tmp_path, changes, score, normalizes, groups):
    spec = read(folder_with(tmp_path, **changes))
    assert (spec.router_score, spec.router_normalizes) == (score, normalizes)
    assert (spec.router_groups, spec.router_top_groups) == groups


def test_kv_heads_of_a_llama_default_to_heads(tmp_path):
    llama = folder_with(tmp_path, architectures=["LlamaForCausalLM"], num_key_value_heads=None)
    assert read(llama).num_kv_heads == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "GPT2LMHeadModel.*LlamaForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen2_5_VL",
        ),
        ({"architectures": None}, "no model table for architecture none"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act = gelu_pytorch_tanh.*use a model with silu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"architectures": ["LlamaForCausalLM"], "mlp_bias": True}, "mlp_bias"),
        (MOE | {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        (MOE | {"mlp_only_layers": [0, 2]}, r"mlp_only_layers = \[0, 2\].*must come first"),
        (MOE | {"num_experts": None}, "config.json has no 'num_local_experts'"),
        (LATENT | {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        (LATENT | {"attention_bias": True}, "attention_bias = True"),
        (LATENT | {"rope_interleave": False}, "rope_interleave = False"),
        (LATENT | V2 | {"topk_method": "noaux_tc"}, "topk_method = noaux_tc"),
        (LATENT | V2 | {"norm_topk_prob": True}, "greedy with norm_topk_prob = True"),
        (MOE | {"architectures": ["MixtralForCausalLM"], "sliding_window": 64}, "sliding_window = 64"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
        (LATENT | {"kv_lora_rank": None}, "config.json has no 'kv_lora_rank'"),
        (GEMMA | {"hidden_activation": "silu"}, "hidden_activation = silu.*gelu_pytorch_tanh"),
        (GEMMA | {"tie_word_embeddings": False}, "tie_word_embeddings = false"),
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


GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2}
LATENT_SIZES = {key: size for key, size in LATENT.items() if key != "architectures"}


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        ("LlamaConfig", GROUPED),
        ("LlamaConfig", GROUPED | {"attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
        ("Qwen2Config", GROUPED),
        ("Qwen2Config", GROUPED | {"tie_word_embeddings": True}),
        ("Qwen3Config", GROUPED | {"head_dim": 32, "tie_word_embeddings": True}),
        ("Qwen3Config", GROUPED | {"attention_bias": True}),
        ("Qwen3MoeConfig", GROUPED | EXPERTS),
        ("Qwen3MoeConfig", GROUPED | EXPERTS | {"mlp_only_layers": [0], "attention_bias": True}),
        ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
        ("DeepseekV2Config", LATENT_SIZES),
        ("DeepseekV2Config", LATENT_SIZES | {"q_lora_rank": None, "first_k_dense_replace": 0}),
        ("DeepseekV3Config", LATENT_SIZES),
        ("DeepseekV3Config", LATENT_SIZES | {"q_lora_rank": None}),
        ("Gemma2Config", GROUPED | {"head_dim": 32}),
        ("Gemma3TextConfig", GROUPED | {"head_dim": 32}),
    ],
)
def test_tables_name_what_transformers_saves(tmp_path, config_class, options):
    import torch
    import transformers
    from safetensors import safe_open

    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 151,
    }
    config = getattr(transformers, config_class)(**sizes, **options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    spec = read(tmp_path)
    assert {name: shard.shape for name, shard in HFLayout(spec).shards(0).items()} == saved
    assert count(spec) == sum(prod(shape) for shape in saved.values())


def families():
    return {path.stem: family_of(tiny(path.stem)) for path in FAMILY_FILES}


def test_every_block_of_a_row_has_one_checkpoint_tensor():
    for row in (row for family in families().values() for row in family.rows):
        assert len(row.hf) == len(row.rows)


def test_names_have_a_place_for_the_layer_and_for_the_expert():
    for row in (row for family in families().values() for row in family.rows):
        sites = (*row.megatron, *row.transformer_engine, *row.engine, *row.vllm)
        names = [*row.hf, *(site.tensor for site in sites)]
        assert [("*" in name) for name in names] == [row.stage == "layers"] * len(names)
        numbered = [*row.hf, *(site.tensor for site in (*row.megatron, *row.transformer_engine))]
        assert [("#" in name) for name in numbered] == [row.per_expert] * len(numbered)


def test_canonical_names_are_unique():
    for family in families().values():
        names = [row.name for row in family.rows]
        assert len(names) == len(set(names))


def test_tables_of_families_with_a_file_are_all_tried():
    assert families().keys() == (FAMILIES | WITH_TOWER).keys()
