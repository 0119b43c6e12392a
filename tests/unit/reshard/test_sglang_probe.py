"""The probe on SGLang's own models: their layout passes, a planted mistake is named, no trace is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[3]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = SIZES | EXPERTS
LATENT |= {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 8}
LATENT |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"n_group": 1, "topk_group": 1, "moe_layer_freq": 1, "q_lora_rank": 24}
LATENT |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN |= {"original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
DENSE = ("llama", "qwen2", "qwen3-tied", "gemma2", "gemma3")
MODELS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**GROUPED), "1,2"),
    "qwen2": ("Qwen2ForCausalLM", transformers.Qwen2Config(**GROUPED), "1,2"),
    "qwen3-tied": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**GROUPED, head_dim=16, tie_word_embeddings=True),
        "1,2",
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        transformers.Gemma2Config(**GROUPED, head_dim=16, hidden_act="gelu_pytorch_tanh"),
        "1,2",
    ),
    "gemma3": ("Gemma3ForCausalLM", transformers.Gemma3TextConfig(**GROUPED, head_dim=16), "1,2"),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS, head_dim=16, num_experts=8),
        "1,2,2:2",
    ),
    "mixtral": (
        "MixtralForCausalLM",
        transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
        "1,2:2",
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        transformers.DeepseekV3Config(**LATENT, rope_parameters=YARN),
        "1,2,2:2",
    ),
}
CASES = [(model, sizes) for model, (_, _, all_sizes) in MODELS.items() for sizes in all_sizes.split(",")]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """(model, sizes) -> what the probe says of each rank."""
    root = tmp_path_factory.mktemp("models")
    orders = []
    for name, (architecture, config, sizes) in MODELS.items():
        config.architectures = [architecture]
        config.save_pretrained(root / name)
        orders.append(f"{root / name}={sizes}")
    program = ROOT / "tests" / "support" / "sglang_probe.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), str(root / "out.json"), *orders]
    subprocess.run(command, check=True, env=environment, timeout=500)
    found = json.loads((root / "out.json").read_text())
    return {(Path(key.split()[0]).name, key.split()[1]): ranks for key, ranks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), CASES)
def test_the_loader_of_sglang_does_what_the_layout_says(verdicts, model, sizes):
    assert {rank["true"] for rank in verdicts[model, sizes]} == {""}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), [case for case in CASES if case[0] in DENSE])
def test_a_layout_with_gate_and_up_exchanged_is_refused(verdicts, model, sizes):
    part = SIZES["intermediate_size"] // int(sizes)
    for rank, found in enumerate(verdicts[model, sizes]):
        first, last = rank * part, (rank + 1) * part - 1
        assert found["false"] == (
            "model.layers.0.mlp.gate_up_proj.weight should hold "
            f"rows {first}-{last}, columns 0-63 of model.layers.0.mlp.up_proj.weight "
            f"at rows 0-{part - 1}, columns 0-63; the engine's loader puts "
            f"rows {first}-{last}, columns 0-63 of model.layers.0.mlp.gate_proj.weight there"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), CASES)
def test_every_tensor_is_restored_where_it_was_also_what_is_derived(verdicts, model, sizes):
    assert [rank["not_restored"] for rank in verdicts[model, sizes]] == [[]] * len(verdicts[model, sizes])
    assert all(bool(rank["derived"]) == (model == "deepseek-v3") for rank in verdicts[model, sizes])
