"""The CUDA device of a rank, and the settings that make its results deterministic.

`take` needs Transformer Engine. Importing this module needs neither that nor a GPU.
"""

import importlib.util
import os
from collections.abc import Mapping

import torch

from hybridrl.errors import ResourceError

BACKEND = "cpu:gloo,cuda:nccl"
"""Backend of process groups: CUDA tensors use NCCL; objects and columns, in host memory, use gloo."""

WORKER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Variables of a worker: GPUs are numbered as by nvidia-smi, and Ray does not set CUDA_VISIBLE_DEVICES."""

_TRAINER = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""Kernels start in the order of their launch; Megatron needs that to overlap communication with computation.
"""

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocators: its present name, and the older one, which it reads without the first."""

_EXACT_PINNED = "pinned_max_round_threshold_mb:1"
"""Pinned buffers above 1 MB are as large as what is in them: torch would round them up to a power of two, and
offloaded tensors would take up to twice their size in host memory."""

_HAS_EXACT_PINNED = (2, 13)
"""First torch that is known to read this setting."""

FP8_CAPABILITIES = {
    "tensorwise": ((8, 9), (13, 0)),
    "blockwise": ((9, 0), (10, 0)),
    "mxfp8": ((10, 0), (12, 0)),
}
"""Compute capabilities of the devices that support each FP8 recipe: from the first, below the second. On
Blackwell, Transformer Engine replaces blockwise by another recipe.
"""

BLOCKWISE_CUDA = (12, 9)
"""First CUDA release whose cuBLAS has blockwise products."""

DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
"""Variables for deterministic results, which cuBLAS, NCCL and Transformer Engine read at their first use."""


def trainer_environment() -> dict[str, str]:
    """Variables of a trainer rank, besides those that it inherits from this process."""
    return trainer_variables(os.environ, torch.__version__)


def trainer_variables(given: Mapping[str, str], torch_version: str) -> dict[str, str]:
    """Variables of a trainer rank.

    Args:
        given: variables that it would inherit; what they say about pinned memory stays.
        torch_version: such as 2.14.1+cu130.
    """
    settings = next((given[name] for name in _ALLOCATOR if given.get(name)), "")
    release = tuple(int(part) for part in torch_version.split(".")[:2])
    if "pinned_max_round_threshold_mb" in settings or release < _HAS_EXACT_PINNED:
        return dict(_TRAINER)
    return _TRAINER | {_ALLOCATOR[0]: ",".join(filter(None, [settings, _EXACT_PINNED]))}


def take(device: int, *, transformer_engine: bool = True) -> torch.device:
    """Make a device the current one of this process.

    Args:
        device: index among the devices that torch sees in this process.
        transformer_engine: whether the trainer's layers are made of its modules.

    Raises:
        ResourceError: the device does not exist, or Transformer Engine is needed and not installed.
    """
    count = torch.cuda.device_count()
    if device >= count:
        raise ResourceError(
            f"a trainer rank has CUDA device {device}, and torch sees {count}",
            fix="name it in CUDA_VISIBLE_DEVICES; cluster.gpus_per_node=0 needs none",
        )
    if transformer_engine and importlib.util.find_spec("transformer_engine") is None:
        raise ResourceError(
            "training on a GPU needs Transformer Engine, which is not installed",
            fix="install what requirements/gpu.txt lists",
        )
    torch.cuda.set_device(device)
    return torch.device("cuda", device)


def release_cached_memory() -> None:
    """Return torch's cached device memory to the driver, so that engines on the same GPU can allocate it.

    This waits for the device. It does nothing in a process that does not use CUDA.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def refuse_fp8(recipe: str, device: torch.device) -> None:
    """Refuse an FP8 recipe that the device or torch's CUDA release does not support.

    Args:
        recipe: actor.fp8; "none" is never refused.

    Raises:
        ResourceError: the device does not support the recipe, or torch's CUDA release is too old for it.
    """
    if recipe == "none":
        return
    least, below = FP8_CAPABILITIES[recipe]
    capability = torch.cuda.get_device_capability(device)
    if not least <= capability < below:
        raise ResourceError(
            f"actor.fp8 = {recipe} needs compute capability {least[0]}.{least[1]} up to below {below[0]}.0, "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}",
            where="actor.fp8",
            fix=f"use {' or '.join(recipes_of(capability))}",
        )
    cuda = tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2]))
    if recipe == "blockwise" and cuda < BLOCKWISE_CUDA:
        raise ResourceError(
            f"actor.fp8 = blockwise needs CUDA 12.9, torch is built for {torch.version.cuda}",
            where="actor.fp8",
            fix="use tensorwise, or install what requirements/gpu.txt lists",
        )


def recipes_of(capability: tuple[int, int]) -> list[str]:
    """Values of actor.fp8 that a device of this compute capability supports."""
    fitting = [name for name, (least, below) in FP8_CAPABILITIES.items() if least <= capability < below]
    return [*fitting, "none"]


def make_deterministic() -> None:
    """Restrict this process to deterministic algorithms. Call this before it uses its device.

    Raises:
        ResourceError: a variable of DETERMINISTIC is set to another value.
    """
    for name, value in DETERMINISTIC.items():
        if os.environ.setdefault(name, value) != value:
            raise ResourceError(
                f"run.deterministic needs {name}={value}, it is {os.environ[name]}", fix=f"unset {name}"
            )
    torch.backends.cudnn.benchmark = False
