"""Converts our description of a model (ModelSpec) to Megatron's TransformerConfig."""

import importlib.util
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from hybridrl.config.training import ActorConfig
from hybridrl.models.spec import ModelSpec, family_of
from hybridrl.trainer.join import precision
from hybridrl.trainer.megatron.rope import amplitude
from hybridrl.trainer.setup import RankSetup

FP8_TOKENS = {"tensorwise": 16, "blockwise": 128, "mxfp8": 32}
"""The number of rows of an FP8 matrix in Transformer Engine is a multiple of this, by recipe.

A blockwise product would accept multiples of 16, but tokens are gathered over ranks in FP8 only if each rank
has whole blocks.
"""

_ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}
"""Activation functions of the gate, by their names in config.json."""


def transformer_config(setup: RankSetup, device: torch.device) -> TransformerConfig:
    """Megatron's description of the model, with the options for this device."""
    model, dtype = setup.model, precision(setup.actor, device)
    make = MLATransformerConfig if model.latent else TransformerConfig
    return make(
        **_sizes(model),
        **(_latent_attention(model) if model.latent else _attention(model)),
        **(_experts(model) if model.num_experts else {}),
        moe_token_dispatcher_type="alltoall",  # Megatron demands it for variable lengths in any model
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **_parallel(setup, device),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        **fp8(setup.actor),
        **_recompute(setup.actor),
        calculate_per_token_loss=True,  # gradients are summed: a loss is its share of a global mean already
        perform_initialization=False,  # weights come from a checkpoint
        persist_layer_norm=False,
        masked_softmax_fusion=False,  # our attention has its own softmax
        use_cpu_initialization=device.type == "cpu",
        **(_fusions(setup) if device.type == "cuda" else _NO_FUSIONS),
    )


_NO_FUSIONS = {
    "gradient_accumulation_fusion": False,
    "bias_dropout_fusion": False,
    "bias_activation_fusion": False,
    "apply_rope_fusion": False,
}
"""Fusions that are off on the CPU, because each needs a CUDA kernel."""


def _fusions(setup: RankSetup) -> dict[str, Any]:
    """Fusions on a GPU. All kernels exist there, except one that only Apex has."""
    model = setup.model
    return {
        "gradient_accumulation_fusion": importlib.util.find_spec(_APEX_KERNEL) is not None,
        "bias_dropout_fusion": True,
        "bias_activation_fusion": family_of(model).activation == "silu",  # the only kernel for gated units
        "apply_rope_fusion": not model.latent,  # the kernel for latent attention computes its own angles
        "moe_grouped_gemm": model.num_experts > 0,
        "deterministic_mode": setup.deterministic,
    }


_APEX_KERNEL = "fused_weight_gradient_mlp_cuda"
"""Kernel of Apex that accumulates a weight's gradient in its buffer; Megatron's own linear layers need it for
gradient_accumulation_fusion."""


def fp8(actor: ActorConfig) -> dict[str, Any]:
    """Megatron's FP8 options; its TransformerBlock then enters Transformer Engine's FP8 context by itself."""
    if actor.fp8 == "none":
        return {}
    # With a scale per block, gradients do not need the wide exponent of e5m2 ("hybrid").
    return {
        "fp8": "hybrid" if actor.fp8 == "tensorwise" else "e4m3",
        "fp8_recipe": actor.fp8,
        "first_last_layers_bf16": actor.bf16_layers > 0,
        "num_layers_at_start_in_bf16": actor.bf16_layers,
        "num_layers_at_end_in_bf16": actor.bf16_layers,
    }


def _parallel(setup: RankSetup, device: torch.device) -> dict[str, Any]:
    parallel = setup.parallel
    several_chunks = parallel.vpp > 1
    return {
        "tensor_model_parallel_size": parallel.tp,
        "sequence_parallel": _shares_sequence(setup, device),
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": parallel.etp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vpp if several_chunks else None,
        "pipeline_model_parallel_layout": _stages(parallel.stage_layers),
        "variable_seq_lengths": parallel.pp > 1,  # packed microbatches differ in length
        # Interleaved schedules free an output before its asynchronous send has ended (Megatron 0.16), and the
        # receiver would get whatever the memory holds by then.
        "deallocate_pipeline_outputs": not several_chunks,
        # Batched messages give an interleaved pipeline wrong gradients (Megatron 0.16).
        "overlap_p2p_comm": several_chunks,
        "batch_p2p_comm": not several_chunks,
    }


def _shares_sequence(setup: RankSetup, device: torch.device) -> bool:
    parallel = setup.parallel
    if parallel.sp is None:
        return parallel.tp > 1 and (device.type == "cuda" or setup.model.num_experts > 0)
    return parallel.sp


def _stages(stage_layers: tuple[int, ...]) -> list[list[str]] | None:
    """Layers of every model chunk, in Megatron's notation; None divides the layers evenly."""
    if not stage_layers:
        return None
    stages = [["decoder"] * count for count in stage_layers]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _recompute(actor: ActorConfig) -> dict[str, Any]:
    if actor.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if actor.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def _sizes(model: ModelSpec) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_size,
        "num_attention_heads": model.num_heads,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_eps,
        "layernorm_zero_centered_gamma": model.centred_norms,
        "gated_linear_unit": True,
        "activation_func": _ACTIVATIONS[family_of(model).activation],
        "add_bias_linear": False,
    }


def _attention(model: ModelSpec) -> dict[str, Any]:
    # YaRN multiplies query and key by the amplitude, so their product by its square.
    scale = (model.query_scale or model.head_dim**-0.5) * amplitude(model) ** 2
    return {
        "num_query_groups": model.num_kv_heads,
        "kv_channels": model.head_dim,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm,
        "softmax_scale": scale,
    }


def _latent_attention(model: ModelSpec) -> dict[str, Any]:
    scaling = model.rope_scaling or {}
    return {
        "q_lora_rank": model.q_lora_rank or None,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_head_dim": model.nope_head_dim,
        "qk_pos_emb_head_dim": model.rope_head_dim,
        "v_head_dim": model.v_head_dim,
        "rope_type": "rope",
        # Megatron derives its softmax scale from these two; PackedRotary computes the angles.
        "rotary_scaling_factor": scaling.get("factor") or 1.0,
        "mscale_all_dim": scaling.get("mscale_all_dim") or 0.0,
        # If True, Megatron would all-reduce the gradients of these norms, which every rank has whole already.
        "qk_layernorm": False,
    }


def _experts(model: ModelSpec) -> dict[str, Any]:
    return {
        "num_moe_experts": model.num_experts,
        "moe_router_topk": model.experts_per_token,
        "moe_ffn_hidden_size": model.expert_ffn_size,
        "moe_shared_expert_intermediate_size": model.shared_ffn_size or None,
        "moe_layer_freq": [int(layer in model.layers("moe")) for layer in range(model.num_layers)],
        "moe_router_load_balancing_type": "none",
        "moe_router_dtype": "fp32",
    }
