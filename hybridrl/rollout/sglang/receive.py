"""Inside a scheduler process: give the model's parameters to others to write, and tell what they hold.

Parameters go by SGLang's own names. A tied weight appears once; buffers (rotary tables) are no weights.
"""

from torch import nn

from hybridrl.errors import EngineError
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.transports.shm import SharedTensor, export


def export_parameters(model: nn.Module) -> dict[str, SharedTensor]:
    """Move every parameter's storage to shared memory, in place.

    Raises:
        EngineError: SGLang repacked a layer for Intel AMX, so that it no longer lies as the model has it.
        ResourceError: shared memory is full, or the model is not on CPU.
    """
    packed = [name for name, layer in model.named_modules() if getattr(layer, "use_intel_amx_backend", False)]
    if packed:
        raise EngineError(
            f"{packed[0]} is repacked for AMX and cannot be written in place",
            fix="uninstall the CPU build of sgl-kernel",
        )
    return {name: export(parameter.data) for name, parameter in model.named_parameters()}


def checksums(model: nn.Module) -> dict[str, int]:
    return {name: checksum(parameter.data) for name, parameter in model.named_parameters()}
