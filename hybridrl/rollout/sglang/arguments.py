"""Arguments with which SGLang is started on this machine: the CUDA engine with CUDA, else the CPU engine.

The in-place swap needs weights in the model's own layout. On CPU, SGLang repacks half-precision weights for
Intel AMX, but only with `convert_weight_packed` of a real sgl-kernel, which our stand-in lacks. It never
repacks float32, which the CPU engine uses here. The receiver refuses a repacked layer in any case.

On CUDA, bfloat16 weights are not repacked with the MoE backend that is chosen here. Nor are weights in block
FP8 on Hopper; on older GPUs SGLang repacks them for Marlin, and on Blackwell it rewrites their scales for
DeepGEMM.
"""

import json
import os
from typing import Any

import torch

from hybridrl.hosts.machine import LOOPBACK
from hybridrl.layout.blocks import BLOCK
from hybridrl.models.spec import read
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.limits import context_tokens
from hybridrl.rollout.sglang.sizes import CPU_CACHE_TOKENS, SPARE_TOKENS, sizes_of

_SHORT_PROMPT_TOKENS = 64
"""On CPU, the prefix cache is off if prompts are shorter than this: looking up prefixes would take half of
the engine's time, more than computing them.
"""

PAGE_TOKENS = 64
"""Largest page of the key-value cache that SGLang chooses: its attention on Blackwell needs pages."""

_BLACKWELL = (10, 0)
"""Compute capability from which SGLang's default attention is TensorRT-LLM's. That ignores a soft cap, and is
not deterministic.
"""


BLOCK_FP8 = {
    # The parameters of a checkpoint in block FP8, as DeepSeek's are. --quantization fp8 would quantise the
    # checkpoint of the folder by rows, with other parameters.
    "json_model_override_args": json.dumps(
        {
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": ["visual"],
            }
        }
    ),
    "load_format": "dummy",  # the first swap writes all weights
}
"""Arguments for an engine whose weights are in block FP8."""


def has_cuda() -> bool:
    """Whether engines of this process run on a GPU."""
    return torch.cuda.is_available()


def environment(tp: int, parts: int, folder: str) -> dict[str, str]:
    """Environment variables for the processes of one engine, in addition to those of their parent.

    Args:
        parts: number of nodes that the engine runs on.
        folder: an empty folder of the engine's own, for sockets, temporary files, and the rendezvous file of
            its tensor-parallel ranks (a TCP rendezvous would listen on all interfaces). Its path must be
            short, because a socket's path may have 107 bytes.
    """
    common = {
        "TMPDIR": folder,
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # SGLang keeps features of pictures by the picture alone, and no flush clears them: after a swap they
        # would be those of older weights.
        "SGLANG_VLM_CACHE_SIZE_MB": "0",
    }
    if parts == 1:
        common["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{folder}/rendezvous"
    else:
        common["SGLANG_BLOCK_NONZERO_RANK_CHILDREN"] = (
            "0"  # otherwise the start of every part but the first blocks
        )
    if has_cuda():
        return common | {
            "SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED": "0",  # 1 would reorder the rows of experts
            "SGLANG_MEMORY_SAVER_CUDA_GRAPH": "0",  # 1 would free the memory of captured graphs in a sleep
            "SGLANG_FORCE_FP8_MARLIN": "0",  # 1 would repack FP8 weights
            "SGLANG_FP8_IGNORED_LAYERS": "",  # layers here would not be those that the layout has in FP8
        }
    return common | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": str(_threads(tp)),
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(tp))),
        "TORCHDYNAMO_DISABLE": "1",
        **({"GLOO_SOCKET_IFNAME": "lo"} if parts == 1 else {}),
    }


def _threads(tp: int) -> int:
    """Compute threads per rank: half of the cores over all ranks; trainers and rewards need the rest."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * tp))


def engine_arguments(setup: EngineSetup) -> dict[str, Any]:
    """Keyword arguments of sglang.Engine, except the model and its version.

    Raises:
        ResourceError: the key-value cache cannot hold one request.
    """
    sizes = sizes_of(setup.parallel)
    cache_tokens = setup.kv_cache_tokens if has_cuda() else setup.kv_cache_tokens or CPU_CACHE_TOKENS
    context = context_tokens(
        setup.max_prompt_tokens, setup.max_response_tokens, cache_tokens, spare=SPARE_TOKENS
    )
    common = {
        "tp_size": sizes.tp,
        "ep_size": sizes.ep,
        "dp_size": sizes.dp_attention,
        "enable_dp_attention": sizes.dp_attention > 1,
        "random_seed": setup.seed,
        "max_running_requests": setup.max_running_requests,
        "context_length": context,
        "max_total_tokens": cache_tokens,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "disable_shared_experts_fusion": True,  # the layout has separate tensors for shared experts
        "schedule_policy": "fcfs",
        "host": LOOPBACK,
        "log_level": "warning",
    }
    if has_cuda():
        return common | _on_cuda(setup)
    return common | {
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "disable_radix_cache": setup.max_prompt_tokens < _SHORT_PROMPT_TOKENS,
        "sleep_on_idle": True,
    }


def _on_cuda(setup: EngineSetup) -> dict[str, Any]:
    tokens = setup.kv_cache_tokens
    capped = read(setup.model_folder).attention_soft_cap is not None
    return {
        "dtype": "bfloat16",
        # A request fills its last page in part, and SGLang admits it with one more in reserve.
        "max_total_tokens": tokens and (-(-tokens // PAGE_TOKENS) + 1) * PAGE_TOKENS,
        "mem_fraction_static": setup.memory_fraction,
        "enable_memory_saver": True,
        "moe_runner_backend": "triton",  # others repack experts, for example the default on Blackwell
        # Dozens of sizes would be captured at every start; their memory is nobody's, and rollouts decode.
        "disable_prefill_cuda_graph": True,
        "enable_deterministic_inference": setup.deterministic,
        **(BLOCK_FP8 if setup.fp8_weights else {}),
        **({"kv_cache_dtype": "fp8_e4m3"} if setup.fp8_cache else {}),
        **({"attention_backend": "triton"} if _is_blackwell() and (capped or setup.deterministic) else {}),
    }


def _is_blackwell() -> bool:
    return torch.cuda.get_device_capability() >= _BLACKWELL
