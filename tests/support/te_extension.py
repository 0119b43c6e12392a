"""Transformer Engine's own Python files on a machine without CUDA. Import this module first in a process.

Only the compiled extension is replaced, by a module whose functions do nothing. So its modules
are built, with the arguments, parameter names and shapes that they have on a GPU, and compute nothing.
"""

import os
import re
import sys
import warnings
from types import SimpleNamespace

from gpu_packages import TRANSFORMER_ENGINE as FOLDER
from gpu_packages import Extension


def enums() -> dict[str, type]:
    """Enums of the extension whose values the Python files take as integers, numbered as they are there."""
    members: dict[str, list[str]] = {}
    for file in ("constants.py", "cpp_extensions/fused_attn.py"):
        text = (FOLDER / "transformer_engine/pytorch" / file).read_text()
        for enum, member in re.findall(r"=\s?int\((?:tex\.)?(\w+)\.(\w+)\)", text):
            members.setdefault(enum, []).append(member)
    numbered = {name: {member: at for at, member in enumerate(found)} for name, found in members.items()}
    return {name: type(name, (), {**values, "__members__": values}) for name, values in numbered.items()}


def prepare() -> None:
    """Make `import transformer_engine.pytorch` work in this process."""
    sys.path.append(str(FOLDER))
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # the core library is not loaded
    extension = Extension("transformer_engine_torch")
    vars(extension).update(enums())
    sys.modules["transformer_engine_torch"] = extension
    export = "transformer_engine.pytorch.onnx_extensions"  # imports two more packages, and nobody exports
    sys.modules[export] = Extension(export)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that the extension is not there
        import transformer_engine.common  # pyright: ignore[reportMissingImports]
    import torch

    transformer_engine.common.load_framework_extension = lambda framework: None
    torch.cuda.Stream = torch.cpu.Stream
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch.cuda.get_device_properties = lambda *device: SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=140 << 30
    )


prepare()
