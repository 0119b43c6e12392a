"""Names and shapes of what Megatron itself builds on each rank. A program: it changes its process for good.

    python megatron_shapes.py OUT CASE...

A case is JSON: fields of a ModelSpec under "model", of a MegatronLayout under "sizes". Process groups are
fake, so that one process builds the model of every rank in turn.
"""

import json
import sys

from hybridrl.trainer.megatron import cpu  # the package prepares this process, before Megatron is imported

# isort: split
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from model_values import tiny
from torch.testing._internal.distributed.fake_pg import FakeStore

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer.megatron.attention import PackedAttention
from hybridrl.trainer.megatron.mla import LatentAttention

torch.cuda.Stream = object  # the dispatcher of tokens makes one when it is built
multi_latent_attention.TELinear = type("Absent", (), {})  # it asks whether a layer is one, and has none
# Megatron 0.19 refuses its own spec without a latent query.
multi_latent_attention.MLASelfAttention._resolve_qk_norm_config = LatentAttention._resolve_qk_norm_config


def config_of(spec, layout):
    options = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_size,
        "num_attention_heads": spec.num_heads,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "context_parallel_size": layout.cp,
        "pipeline_dtype": torch.float32,
        "use_cpu_initialization": True,
        "perform_initialization": False,
    }
    if layout.vpp > 1:
        options["virtual_pipeline_model_parallel_size"] = layout.vpp
    if spec.num_experts:
        options |= {
            "num_moe_experts": spec.num_experts,
            "moe_router_topk": spec.experts_per_token,
            "moe_ffn_hidden_size": spec.expert_ffn_size,
            "moe_shared_expert_intermediate_size": spec.shared_ffn_size or None,
            "moe_layer_freq": [int(layer in spec.layers("moe")) for layer in range(spec.num_layers)],
            "moe_router_enable_expert_bias": spec.router_bias,
            "moe_router_score_function": "sigmoid" if spec.router_bias else "softmax",
            "moe_token_dispatcher_type": "alltoall",
            "expert_model_parallel_size": layout.ep,
            "expert_tensor_parallel_size": layout.etp,
        }
    if not spec.latent:
        attention = {"num_query_groups": spec.num_kv_heads, "kv_channels": spec.head_dim}
        attention |= {"qk_layernorm": spec.qk_norm, "add_qkv_bias": spec.qkv_bias}
        return TransformerConfig(**options, **attention)
    return MLATransformerConfig(
        **options,
        qk_layernorm=True,
        q_lora_rank=spec.q_lora_rank or None,
        kv_lora_rank=spec.kv_lora_rank,
        qk_head_dim=spec.nope_head_dim,
        qk_pos_emb_head_dim=spec.rope_head_dim,
        v_head_dim=spec.v_head_dim,
    )


def chunk_shapes(spec, layout, chunk):
    config = config_of(spec, layout)
    vp_stage = chunk if layout.vpp > 1 else None
    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization="RMSNorm", vp_stage=vp_stage
    )
    for layer in block.layer_specs:  # Megatron's own takes no latent attention
        layer.submodules.self_attention.submodules.core_attention = PackedAttention
    last = chunk == layout.vpp - 1 and parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    first = chunk == 0 and parallel_state.is_pipeline_first_stage(ignore_virtual=True)
    model = GPTModel(
        config,
        block,
        vocab_size=layout.padded_vocab,
        max_sequence_length=spec.max_positions,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="rope",
        vp_stage=vp_stage,
    )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = {
        name: list(x.shape)
        for name, x in tensors
        if "expert_bias" in name or isinstance(x, torch.nn.Parameter)
    }
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
    return {_numbered(name, numbers): shape for name, shape in found.items()}


def _numbered(name, numbers):
    if not name.startswith("decoder.layers."):
        return name
    _, _, local, rest = name.split(".", 3)
    return f"decoder.layers.{numbers[int(local)]}.{rest}"


def rank_shapes(spec, layout, rank):
    dist.init_process_group("fake", rank=rank, world_size=layout.world_size, store=FakeStore())
    parallel_state.initialize_model_parallel(
        layout.tp,
        layout.pp,
        layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    found = {}
    with cpu.scope():
        for chunk in range(layout.vpp):
            found |= chunk_shapes(spec, layout, chunk)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    out, *cases = sys.argv[1:]
    found = []
    for case in map(json.loads, cases):
        spec = tiny(**case["model"])
        layout = MegatronLayout(spec, **case["sizes"])
        found.append([rank_shapes(spec, layout, rank) for rank in range(layout.world_size)])
    with open(out, "w") as file:
        json.dump(found, file)
