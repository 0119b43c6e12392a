"""POSIX shared memory, for processes of one machine on CPU.

The storage itself moves, so a live model keeps its parameters, views and ties. torch counts the processes
that use a segment, and its manager process unlinks it after the last one, also after one that was killed.
"""

import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports.base import SharedTensor

__all__ = ["SharedTensor", "attach", "export"]


def export(tensor: torch.Tensor) -> SharedTensor:
    """Move the storage of `tensor` to shared memory in place; one that is there already stays there.

    Raises:
        ResourceError: the tensor is not on CPU, or shared memory is full.
    """
    if tensor.device.type != "cpu":
        raise ResourceError(
            f"shared memory holds CPU tensors, not one on {tensor.device}", fix="use a device transport"
        )
    storage = tensor.untyped_storage()
    try:
        address = storage._share_filename_cpu_()
    except RuntimeError as error:
        raise ResourceError(
            f"cannot move {storage.nbytes()} bytes to shared memory: {error}", where="/dev/shm"
        ) from error
    return SharedTensor(
        "shm", address, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    )


def attach(shared: SharedTensor) -> torch.Tensor:
    """
    Raises:
        ResourceError: the exporter is gone, and its memory with it.
    """
    try:
        storage = torch.UntypedStorage._new_shared_filename_cpu(*shared.address)
    except RuntimeError as error:
        raise ResourceError(
            f"shared memory is gone: {error}", fix="restart the engine that exported it"
        ) from error
    return torch.empty(0, dtype=shared.dtype).set_(storage, shared.offset, shared.shape, shared.stride)
