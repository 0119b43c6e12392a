"""From our configs to Megatron's: process groups, and the description of the model."""

from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig

from hybridrl.config.training import ActorConfig
from hybridrl.errors import ResourceError
from hybridrl.hosts import cpu
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer.setup import TrainerSetup, megatron_layout, refuse_unbuildable


def start(setup: TrainerSetup) -> torch.device:
    """Join the process groups and seed. *Collective*. Returns the device of this rank.

    Raises:
        ResourceError: torch would use a GPU.
    """
    if torch.cuda.is_available():
        raise ResourceError(
            "the trainer has no Transformer Engine layers and no NCCL groups yet, and torch sees a GPU",
            fix="an empty CUDA_VISIBLE_DEVICES trains on the CPU",
        )
    address = {"init_method": setup.rendezvous, "rank": setup.rank, "world_size": setup.parallel.num_ranks}
    dist.init_process_group("gloo", timeout=timedelta(seconds=setup.timeout_s), **address)
    parallel_state.initialize_model_parallel(setup.parallel.tp, setup.parallel.pp)
    torch.manual_seed(setup.seed)
    tensor_parallel.model_parallel_cuda_manual_seed(setup.seed)
    return cpu.CPU


def leave() -> None:
    """Leave the process groups, so that `start` can be called again in this process."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def make_layout(setup: TrainerSetup) -> MegatronLayout:
    """Who holds which part of the model.

    Raises:
        LayoutError: the model does not divide over the ranks.
        ModelError: it has a part that our layers lack.
    """
    refuse_unbuildable(setup.model, where=str(setup.model_folder))
    return megatron_layout(setup.model, setup.parallel)


def transformer_config(setup: TrainerSetup, device: torch.device) -> TransformerConfig:
    """Megatron's description of the model; every fusion that needs a CUDA kernel is off."""
    model, full_recompute = setup.model, setup.actor.recompute == "full"
    dtype = precision(setup.actor, device)
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_size,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=setup.parallel.tp,
        pipeline_model_parallel_size=setup.parallel.pp,
        variable_seq_lengths=setup.parallel.pp > 1,  # packed microbatches differ in length
        moe_token_dispatcher_type="alltoall",  # demanded where lengths vary, even without experts
        deallocate_pipeline_outputs=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        recompute_granularity="full" if full_recompute else None,
        recompute_method="uniform" if full_recompute else None,
        recompute_num_layers=1 if full_recompute else None,
        calculate_per_token_loss=True,  # gradients are summed: every loss is a share of a global mean already
        use_cpu_initialization=True,
        perform_initialization=False,  # weights come from a checkpoint
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
    )


def precision(actor: ActorConfig, device: torch.device) -> torch.dtype:
    """Of parameters and activations; bf16 on GPUs and fp32 on CPU unless the config says otherwise."""
    name = actor.precision or ("bf16" if device.type == "cuda" else "fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
