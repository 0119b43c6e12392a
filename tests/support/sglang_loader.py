"""What SGLang's own loader puts into each rank of an engine. A program: it changes its process for good.

    python sglang_loader.py OUT FOLDER=TP[:EP[:DP]][,...]...

Builds each model on CPU once a rank, without engine or process group: SGLang allows that before groups exist,
and finds a rank's place in them by itself. DP is that of the attention.
"""

import os
import sys
from types import SimpleNamespace

os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from safetensors.torch import load_file
from sglang.srt import runtime_context
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.dp_attention import initialize_dp_attention_flags
from sglang.srt.layers.moe.utils import resolve_shared_experts_config
from sglang.srt.layers.quantization import fp8 as fp8_layers
from sglang.srt.model_loader.loader import _get_quantization_config, set_default_torch_dtype
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.server_args import ServerArgs

from hybridrl.hosts.standins import operators
from hybridrl.rollout.sglang.arguments import BLOCK_FP8

operators.declare()


def group(rank, size):
    ends = {"is_first_rank": rank == 0, "is_last_rank": rank == size - 1}
    return SimpleNamespace(
        rank_in_group=rank, rank=rank, world_size=size, cpu_group=None, device_group=None, **ends
    )


def on_model(folder, tp, rank, question, ep=1, dp=1, fp8=False):
    """What `question` says of a rank's model, before weights are loaded.

    Args:
        fp8: with our arguments for block FP8. After a load SGLang does what it does on Hopper.
    """
    fp8_layers._is_cpu = fp8_layers._is_cpu and not fp8
    arguments = ServerArgs(
        model_path=folder,
        tp_size=tp,
        ep_size=ep,
        attn_dp_size=dp,
        enable_dp_lm_head=dp > 1,
        device="cpu",
        skip_tokenizer_init=True,
        attention_backend="torch_native",
        **(BLOCK_FP8 if fp8 else {}),
    )
    place = runtime_context.SpawnRanks(gpu_id=0, world_rank=rank)
    context = runtime_context.create_context(arguments, role="scheduler", ranks=place)
    with runtime_context.use_context(context):
        parallel = context.parallel
        parallel.override_permanently(
            pp_group=group(0, 1),
            attn_cp_group=group(0, 1),
            tp_group=group(rank, tp),
            attn_tp_group=group(parallel.attn_tp_rank, parallel.attn_tp_size),
            moe_ep_group=group(parallel.moe_ep_rank, parallel.moe_ep_size),
            moe_tp_group=group(parallel.moe_tp_rank, parallel.moe_tp_size),
        )
        initialize_dp_attention_flags(arguments)
        config = ModelConfig.from_server_args(arguments)
        model_class, _ = get_model_architecture(config)
        shared = resolve_shared_experts_config(model_class, config.hf_config, None)
        with (
            set_default_torch_dtype(torch.float32),
            runtime_context.get_model().override(shared_experts=shared),
        ):
            model = model_class(
                config=config.hf_config, quant_config=_get_quantization_config(config, LoadConfig())
            )
        return question(model)


def loaded(folder, tp, rank, ep=1, dp=1):
    def load(model):
        model.load_weights(iter(load_file(f"{folder}/model.safetensors").items()))
        return {name: parameter.data for name, parameter in model.named_parameters()}

    return on_model(folder, tp, rank, load, ep, dp)


def answers(orders, question):
    """(folder, sizes) -> question(folder, tp, rank, ep, dp) of each rank; orders: FOLDER=TP[:EP[:DP]],..."""
    found = {}
    for folder, _, cases in (order.partition("=") for order in orders):
        for case in cases.split(","):
            tp, *rest = map(int, case.split(":"))
            found[folder, case] = [question(folder, tp, rank, *rest) for rank in range(tp)]
    return found


if __name__ == "__main__":
    out, *orders = sys.argv[1:]
    torch.save(answers(orders, loaded), out)
