"""Runs when an interpreter of the environment starts: adds two finders to sys.meta_path, and imports nothing
heavy.

One finder acts before torchvision registers its operators, the other finds the stand-in for `sgl_kernel` if
no real one is installed.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_HERE = os.path.dirname(os.path.abspath(__file__))


class TorchvisionSchemas:
    """Declares the operator schemas that importing torchvision needs.

    PyPI's torchvision is linked to CUDA. With a CPU torch its library cannot load, so it does not declare
    them itself.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision._meta_registrations":
            _declare_schemas()


class CpuKernels:
    """Finds the CPU stand-in for `sgl_kernel`. It is last in sys.meta_path, so an installed package is found
    first.
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
    """Add both finders. A second call does nothing, even from another copy of this module, because finders
    are recognised by the names of their classes.
    """
    present = {type(finder).__name__ for finder in sys.meta_path}
    if TorchvisionSchemas.__name__ not in present:
        sys.meta_path.insert(0, TorchvisionSchemas())
    if CpuKernels.__name__ not in present:
        sys.meta_path.append(CpuKernels())
