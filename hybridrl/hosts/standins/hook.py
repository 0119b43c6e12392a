"""Runs at the start of every interpreter of the environment: puts two finders into sys.meta_path and imports nothing.

One finder acts before PyPI's torchvision registers its operators, the other answers for `sgl_kernel` when nobody else does.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class TorchvisionSchemas:
    """Beside a CPU torch, torchvision's CUDA-linked library cannot load and its import fails on operators without a schema."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            _declare_schemas()
        return None


class CpuKernels:
    """Finds the CPU stand-in for `sgl_kernel`. Last in sys.meta_path: an installed sgl_kernel is always found first."""

    def find_spec(self, name, path=None, target=None):
        if name != "sgl_kernel":
            return None
        import torch

        if torch.cuda.is_available():
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, os.path.join(_HERE, "sgl_kernel.py"))


def _declare_schemas():
    import torch

    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def activate():
    """Idempotent over copies of this module: finders are told apart by the name of their class."""
    present = {type(finder).__name__ for finder in sys.meta_path}
    if TorchvisionSchemas.__name__ not in present:
        sys.meta_path.insert(0, TorchvisionSchemas())
    if CpuKernels.__name__ not in present:
        sys.meta_path.append(CpuKernels())
