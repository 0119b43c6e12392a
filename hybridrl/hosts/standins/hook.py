"""Runs when an interpreter of the environment starts: puts two finders into sys.meta_path, imports nothing.

One acts before PyPI's torchvision registers its operators, the other finds `sgl_kernel` when nobody else
does.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_HERE = os.path.dirname(os.path.abspath(__file__))


class TorchvisionSchemas:
    """Beside a CPU torch torchvision's CUDA-linked library cannot load: its import needs schemas nobody
    declared.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision._meta_registrations":
            _declare_schemas()


class CpuKernels:
    """Finds the CPU stand-in for `sgl_kernel`. Last in sys.meta_path, so an installed one is always
    found first.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name != "sgl_kernel":
            return None
        import torch

        if torch.cuda.is_available():
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, os.path.join(_HERE, "sgl_kernel.py"))


def _declare_schemas() -> None:
    import torch

    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{op}", schema)


def activate() -> None:
    """Repeating it is free, also through another copy of this module: finders are known by their
    class's name.
    """
    present = {type(finder).__name__ for finder in sys.meta_path}
    if TorchvisionSchemas.__name__ not in present:
        sys.meta_path.insert(0, TorchvisionSchemas())
    if CpuKernels.__name__ not in present:
        sys.meta_path.append(CpuKernels())
