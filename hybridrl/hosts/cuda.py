"""The machine with CUDA: the device of a rank, and what makes its results the same from run to run.

Needs Transformer Engine. Nothing here is imported where there is no GPU.
"""

import importlib.util
import os

import torch

from hybridrl.errors import ResourceError

BACKEND = "cpu:gloo,cuda:nccl"
"""Of process groups: tensors go over NCCL; objects and columns, which are in host memory, over gloo."""

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
