"""Our plans put into an SGLang rank what SGLang's own loader puts there: every name, element and pad."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from model_values import hf_tensors
from safetensors.torch import save_file

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.reshard.checkpoint import load_hf

SIZES = {
    "vocab_size": 151,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = SIZES | EXPERTS
LATENT |= {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 8}
LATENT |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"n_group": 1, "topk_group": 1, "moe_layer_freq": 1}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN |= {"original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
LATENT |= {"rope_parameters": YARN}
DENSE, MIXED = "1,2,4,8", "1,2,2:2,4:2"
MODELS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**GROUPED), DENSE),
    "llama-bias-tied": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**GROUPED, attention_bias=True, tie_word_embeddings=True),
        DENSE,
    ),
    "qwen2": ("Qwen2ForCausalLM", transformers.Qwen2Config(**GROUPED), DENSE),
    "qwen3-tied": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
        f"{DENSE},4:1:2",
    ),
    "qwen3-bias": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**GROUPED, head_dim=16, attention_bias=True),
        f"{DENSE},4:1:2",
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=16, num_experts=8),
        f"{MIXED},4:4,2:2:2,4:2:2",
    ),
    "mixtral": (
        "MixtralForCausalLM",
        transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
        MIXED,
    ),
    "deepseek-v2": (
        "DeepseekV2ForCausalLM",
        transformers.DeepseekV2Config(**LATENT, q_lora_rank=24, scoring_func="softmax"),
        f"{MIXED},4:2:2",
    ),
    "deepseek-v2-lite": (
        "DeepseekV2ForCausalLM",
        transformers.DeepseekV2Config(**LATENT, q_lora_rank=None, scoring_func="softmax"),
        MIXED,
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        transformers.DeepseekV3Config(
            **LATENT, q_lora_rank=24, scoring_func="sigmoid", topk_method="noaux_tc"
        ),
        f"{MIXED},4:4:4,4:2:2",
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        transformers.Gemma2Config(**GROUPED, head_dim=16, hidden_act="gelu_pytorch_tanh"),
        "1,2",
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        transformers.Gemma3TextConfig(**GROUPED, head_dim=16),
        "1,2",
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(folder, sizes) -> parameters of every rank, by SGLang."""
    root = tmp_path_factory.mktemp("models")
    orders = []
    for name, (architecture, config, sizes) in MODELS.items():
        config.architectures = [architecture]
        config.save_pretrained(root / name)
        save_file(hf_tensors(read(root / name)), root / name / "model.safetensors")
        orders.append(f"{root / name}={sizes}")
    program = Path(__file__).parents[2] / "support" / "sglang_loader.py"
    subprocess.run([sys.executable, str(program), str(root / "out.pt"), *orders], check=True, timeout=600)
    found = torch.load(root / "out.pt", weights_only=True)
    return {(Path(folder).name, sizes): (Path(folder), ranks) for (folder, sizes), ranks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sizes"), [(name, sizes) for name, (_, _, all_) in MODELS.items() for sizes in all_.split(",")]
)
def test_equals_the_loader_of_sglang(loaded, model, sizes):
    folder, ranks = loaded[model, sizes]
    tp, ep, dp = (*map(int, sizes.split(":")), 1, 1)[:3]
    layout = SGLangLayout(read(folder), tp=tp, ep=ep, dp_attention=dp, dp_lm_head=dp > 1)
    for rank, theirs in enumerate(ranks):
        ours = {name: torch.full(shard.shape, 7.0) for name, shard in layout.shards(rank).items()}
        load_hf(folder, layout, rank, ours)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), (rank, name)
