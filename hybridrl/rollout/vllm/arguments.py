"""Arguments and environment variables with which vLLM is started on this machine.

The environment has to be right before the first import of vllm, because vLLM reads it then.
"""

import os
from typing import Any

from hybridrl.hosts.machine import LOOPBACK
from hybridrl.models.spec import ModelSpec
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.limits import context_tokens
from hybridrl.rollout.vllm.sizes import (
    CPU_BLOCK_TOKENS,
    CPU_CACHE_TOKENS,
    GPU_BATCH_TOKENS,
    cache_blocks,
)

_BYTES = 4
"""Bytes of a number in the cache on CPU."""

_GPU_BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's cache on a GPU."""

_WORKER = "hybridrl.rollout.vllm.worker"


def environment(tp: int, cuda: bool, folder: str) -> dict[str, str]:
    """Environment variables for the processes of one engine, in addition to those of their parent.

    Args:
        cuda: the engine runs on GPUs.
        folder: an empty folder of the engine's own, for temporary files and compiled code.
    """
    common = {
        "TMPDIR": folder,
        "VLLM_CONFIG_ROOT": folder,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # core.py is the process of the scheduler
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # its sampler is another one
        "VLLM_HOST_IP": LOOPBACK,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cuda:
        return common
    return common | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(_threads(tp)),
        "TORCHDYNAMO_DISABLE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _threads(tp: int) -> int:
    """Compute threads per rank: half of the cores over all ranks; trainers and rewards need the rest."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * tp))


def engine_arguments(setup: EngineSetup, model: ModelSpec, cuda: bool) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs.

    Raises:
        ResourceError: the key-value cache cannot hold one request.
    """
    cache_tokens = setup.kv_cache_tokens or (None if cuda else CPU_CACHE_TOKENS)
    return {
        "model": setup.model_folder,
        "tensor_parallel_size": setup.parallel.tp,
        "distributed_executor_backend": "uni" if setup.parallel.tp == 1 else "mp",
        "seed": setup.seed,
        "max_num_seqs": setup.max_running_requests,
        "max_model_len": context_tokens(setup.max_prompt_tokens, setup.max_response_tokens, cache_tokens),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # requests bring all options
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "async_scheduling": False,  # a step is over when its tokens are there
        **(_on_gpu(setup) if cuda else _on_cpu(setup, model)),
    }


def _on_gpu(setup: EngineSetup) -> dict[str, Any]:
    tokens = setup.kv_cache_tokens
    return {
        "worker_cls": f"{_WORKER}.GPURolloutWorker",
        "dtype": "bfloat16",
        "gpu_memory_utilization": setup.memory_fraction,
        "max_num_batched_tokens": GPU_BATCH_TOKENS,
        "enable_sleep_mode": True,
        **({"num_gpu_blocks_override": -(-tokens // _GPU_BLOCK_TOKENS)} if tokens else {}),
    }


def _on_cpu(setup: EngineSetup, model: ModelSpec) -> dict[str, Any]:
    blocks = cache_blocks(setup.kv_cache_tokens or CPU_CACHE_TOKENS)
    return {
        "worker_cls": f"{_WORKER}.CPURolloutWorker",
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": CPU_BLOCK_TOKENS,
        "num_gpu_blocks_override": blocks,
        # What the blocks take at most: vLLM asks whether the machine has it.
        "kv_cache_memory_bytes": blocks * CPU_BLOCK_TOKENS * model.kv_cache_size * _BYTES,
    }
