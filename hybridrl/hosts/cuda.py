"""The machine with CUDA: the device of a rank, and what makes its results the same from run to run.

Taking a device needs Transformer Engine; importing this needs neither.
"""

import importlib.util
import os

import torch

from hybridrl.errors import ResourceError

BACKEND = "cpu:gloo,cuda:nccl"
"""Of process groups: tensors go over NCCL; objects and columns, which are in host memory, over gloo."""

WORKER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Variables of a worker: GPUs are counted as nvidia-smi does, and Ray leaves it to us who sees which."""

TRAINER = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
"""Variables of a trainer rank: kernels start in the order in which Megatron launches them, which its overlap
of communication and computation relies on.
"""

FP8_CAPABILITIES = {
    "tensorwise": ((8, 9), (13, 0)),
    "blockwise": ((9, 0), (10, 0)),
    "mxfp8": ((10, 0), (12, 0)),
}
"""Compute capabilities of the devices that multiply so: from the first on, below the second. On Blackwell,
Transformer Engine computes something else in the place of blockwise.
"""

BLOCKWISE_CUDA = (12, 9)
"""Where cuBLAS has it from on."""

DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
"""Variables that cuBLAS, NCCL and Transformer Engine read when they are first used."""


def take(device: int) -> torch.device:
    """Make a device the one that this process computes on.

    Args:
        device: as torch counts those that the process sees.

    Raises:
        ResourceError: it is not there, or Transformer Engine is not installed.
    """
    count = torch.cuda.device_count()
    if device >= count:
        raise ResourceError(
            f"a trainer rank has CUDA device {device}, and torch sees {count}",
            fix="name it in CUDA_VISIBLE_DEVICES; cluster.gpus_per_node=0 needs none",
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise ResourceError(
            "training on a GPU needs Transformer Engine, which is not installed",
            fix="install what requirements/gpu.txt lists",
        )
    torch.cuda.set_device(device)
    return torch.device("cuda", device)


def release_cached_memory() -> None:
    """Give the device memory that this process keeps for tensors to come back to the driver: only from there
    can an engine, another process on the same GPU, take it.

    Waits for the device. Nothing happens in a process that uses none.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def refuse_fp8(recipe: str, device: torch.device) -> None:
    """
    Args:
        recipe: actor.fp8; "none" is never refused.

    Raises:
        ResourceError: the device has no products of this kind, or they came to CUDA after torch's.
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
    """Values of actor.fp8 that a device of this compute capability can have."""
    fitting = [name for name, (least, below) in FP8_CAPABILITIES.items() if least <= capability < below]
    return [*fitting, "none"]


def make_deterministic() -> None:
    """Only algorithms that give the same bits from the same input, for this process; call it before it uses
    its device.

    Raises:
        ResourceError: a variable is set that asks for something else.
    """
    for name, value in DETERMINISTIC.items():
        if os.environ.setdefault(name, value) != value:
            raise ResourceError(
                f"run.deterministic needs {name}={value}, it is {os.environ[name]}", fix=f"unset {name}"
            )
    torch.backends.cudnn.benchmark = False
