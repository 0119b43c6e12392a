"""What SGLang's own loader puts into each tensor-parallel rank. A program: it changes its process for good.

    python sglang_loader.py OUT TP[,TP...] FOLDER...

Builds each model on CPU once a rank, without engine or process group: SGLang allows that before groups exist.
"""

import os
import sys
from types import SimpleNamespace

os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}

import torch
from safetensors.torch import load_file
from sglang.srt import runtime_context
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import set_default_torch_dtype
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.server_args import ServerArgs


def group(rank, size):
    ends = {"is_first_rank": rank == 0, "is_last_rank": rank == size - 1}
    return SimpleNamespace(
        rank_in_group=rank, rank=rank, world_size=size, cpu_group=None, device_group=None, **ends
    )


def loaded(folder, tp, rank):
    arguments = ServerArgs(
        model_path=folder,
        tp_size=tp,
        device="cpu",
        skip_tokenizer_init=True,
        attention_backend="torch_native",
    )
    place = runtime_context.SpawnRanks(gpu_id=0, world_rank=rank)
    context = runtime_context.create_context(arguments, role="scheduler", ranks=place)
    with runtime_context.use_context(context):
        alone, ours = group(0, 1), group(rank, tp)
        context.parallel.override_permanently(
            pp_group=alone,
            moe_ep_group=alone,
            attn_cp_group=alone,
            tp_group=ours,
            attn_tp_group=ours,
            moe_tp_group=ours,
        )
        config = ModelConfig.from_server_args(arguments)
        model_class, _ = get_model_architecture(config)
        with set_default_torch_dtype(torch.float32):
            model = model_class(config=config.hf_config)
        model.load_weights(iter(load_file(f"{folder}/model.safetensors").items()))
        return {name: parameter.data for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    out, sizes, *folders = sys.argv[1:]
    found = {
        (folder, int(tp)): [loaded(folder, int(tp), rank) for rank in range(int(tp))]
        for folder in folders
        for tp in sizes.split(",")
    }
    torch.save(found, out)
