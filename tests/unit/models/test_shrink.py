"""A small model is a whole model of its family: our tables and transformers read it, two ranks divide it."""

import json

import pytest
import torch
import transformers

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.models.shrink import LAYERS, SIZES, shrink, small

KINDS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen2_tied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {}),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", {"num_experts_per_tok": 6}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {}),
}


@pytest.fixture(params=KINDS)
def folders(request, tmp_path):
    """The model folder of a published size, config.json only, and the small one."""
    name, architecture, changes = KINDS[request.param]
    config = getattr(transformers, name)(**changes).to_dict() | {"architectures": [architecture]}
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    shrink(config, tmp_path / "small", seed=0)
    return source, tmp_path / "small"


def test_the_switches_stay_and_the_sizes_are_small(folders):
    large, little = map(spec.read, folders)
    assert (little.family, little.tied, little.qkv_bias, little.qk_norm, little.latent) == (
        large.family,
        large.tied,
        large.qkv_bias,
        large.qk_norm,
        large.latent,
    )
    assert bool(little.num_experts) == bool(large.num_experts)
    assert little.router_bias == large.router_bias
    assert little.num_layers == LAYERS and little.vocab_size == SIZES["vocab_size"]
    assert spec.count(little) < 200_000


def test_two_ranks_of_every_kind_divide_it(folders):
    little = spec.read(folders[1])
    for sizes in ({"tp": 2}, {"pp": 2}, {"pp": 2, "vpp": 2}):
        MegatronLayout(little, **sizes, vocab_multiple=1)
    if little.num_experts:
        MegatronLayout(little, ep=2, dp=2, vocab_multiple=1)
        MegatronLayout(little, ep=2, etp=2, dp=4, vocab_multiple=1)


def test_transformers_reads_all_of_it(folders):
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folders[1], dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits
    assert torch.isfinite(logits).all() and 0.1 < float(logits.std()) < 10


def test_a_seed_has_one_model(folders, tmp_path):
    source, first = folders
    config = json.loads((source / "config.json").read_text())
    shrink(config, tmp_path / "again", seed=0)
    shrink(config, tmp_path / "other", seed=1)
    made = (first, tmp_path / "again", tmp_path / "other")
    weights = [(folder / "model.safetensors").read_bytes() for folder in made]
    assert weights[0] == weights[1] != weights[2]


def test_layers_of_every_kind_stay(tmp_path):
    kinds = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 6
    made = small({"num_attention_heads": 8, "num_key_value_heads": 8, "layer_types": kinds})
    assert made["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]
    assert made["num_key_value_heads"] == 4


def test_tokens_beyond_the_small_vocabulary_are_left_out(tmp_path):
    config = transformers.Olmo2Config(pad_token_id=100277).to_dict() | {"architectures": ["Olmo2ForCausalLM"]}
    shrink(config, tmp_path / "small", seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert model.get_input_embeddings().num_embeddings == SIZES["vocab_size"]
    assert not spec.read(tmp_path / "small").has_table
