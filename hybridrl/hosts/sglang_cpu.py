"""How SGLang is started on this machine: its CPU engine where there is no CUDA, its CUDA engine where there is.

On CPU weights stay as the model has them, which the in-place swap relies on. SGLang would repack half-precision weights for
Intel AMX, but only with the operator `convert_weight_packed` of a real sgl-kernel; the stand-in has none, and float32 is
never repacked. The weight receiver refuses a model with a repacked layer all the same.
"""

import os
from pathlib import Path
from typing import Any

import torch

import hybridrl

LOOPBACK = "127.0.0.1"

_PROJECT = str(Path(hybridrl.__file__).resolve().parent.parent)

_CPU_KV_TOKENS = 65536
"""Slots of the key-value cache on CPU when the config leaves them open: main memory has no budget of its own to divide."""


def has_cuda() -> bool:
    """Whether engines of this process run on a GPU."""
    return torch.cuda.is_available()


def environment(tp: int, folder: str) -> dict[str, str]:
    """Variables that the processes of one engine need, on top of those of their parent.

    Args:
        folder: empty, the engine's own: for sockets, temporary files, and the file where its tensor-parallel ranks meet. (A TCP
            rendezvous would listen on all interfaces.) Its path is short, a socket's may have 107 bytes.
    """
    common = {
        "TMPDIR": folder,
        "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE": f"file://{folder}/rendezvous",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if has_cuda():
        return common
    return common | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": str(_threads(tp)),
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(tp))),
        "TORCHDYNAMO_DISABLE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def process_environment(tp: int, folder: str) -> dict[str, str]:
    """The whole environment of an engine's processes: this process's own, this project importable, and environment()."""
    paths = [_PROJECT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **environment(tp, folder)}


def _threads(tp: int) -> int:
    """Half of the cores, shared by the ranks: engines spin, and trainers and rewards have to run beside them."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * tp))


def engine_arguments(
    *,
    tp: int,
    seed: int,
    kv_cache_tokens: int | None,
    memory_fraction: float,
    max_running_requests: int,
    context_tokens: int,
) -> dict[str, Any]:
    """Keyword arguments of sglang.Engine that depend on the machine or that hybridrl always sets."""
    common = {
        "tp_size": tp,
        "random_seed": seed,
        "max_running_requests": max_running_requests,
        "context_length": context_tokens,
        "skip_tokenizer_init": True,
        "grammar_backend": "none",
        "host": LOOPBACK,
        "log_level": "warning",
        "schedule_policy": "fcfs",
    }
    if has_cuda():
        return common | {
            "mem_fraction_static": memory_fraction,
            "max_total_tokens": kv_cache_tokens,
            "enable_memory_saver": True,
            "dtype": "bfloat16",
        }
    return common | {
        "device": "cpu",
        "dtype": "float32",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "max_total_tokens": kv_cache_tokens or _CPU_KV_TOKENS,
        "sleep_on_idle": True,
    }
