"""POSIX shared memory, for CPU tensors of processes on one machine.

The storage itself is moved, so a live model keeps its parameters, views and tied weights. A segment has no
name: processes open it through the exporter's file descriptor, and the kernel frees it after its last user,
even if that user was killed.
"""

import errno
import os
import resource
from typing import Any, cast

import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports.base import SharedTensor

__all__ = ["SharedTensor", "attach", "export"]

_DESCRIPTORS = 65536


def export(tensor: torch.Tensor) -> SharedTensor:
    """Move the storage of `tensor` to shared memory in place, unless it is there already.

    Raises:
        ResourceError: the tensor is not on CPU, or shared memory is full.
    """
    if tensor.device.type != "cpu":
        raise ResourceError(
            f"shared memory holds CPU tensors, not one on {tensor.device}", fix="use a device transport"
        )
    _allow_a_descriptor_for_every_parameter()
    storage = tensor.untyped_storage()
    try:
        # torch can also share by name, but that needs a manager process and breaks when it ends.
        descriptor, size = storage._share_fd_cpu_()
    except RuntimeError as error:
        raise ResourceError(
            f"cannot move {storage.nbytes()} bytes to shared memory: {error}", where="/dev/shm"
        ) from error
    address = (os.getpid(), descriptor, _identity(descriptor), size)
    return SharedTensor(
        "shm", address, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    )


def attach(shared: SharedTensor) -> torch.Tensor:
    """Map the memory of an exported tensor.

    Raises:
        ResourceError: the exporter ended, and its memory is freed.
    """
    _allow_a_descriptor_for_every_parameter()
    try:
        storage = _attached(*shared.address)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"shared memory is gone: {error}", fix="restart the engine that exported it"
        ) from error
    return torch.empty(0, dtype=shared.dtype).set_(storage, shared.offset, shared.shape, shared.stride)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _attached(pid: int, descriptor: int, identity: tuple[int, int], size: int) -> torch.UntypedStorage:
    mine = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR)
    try:
        if _identity(mine) != identity:  # Another file has this descriptor number now.
            raise OSError(errno.ESTALE, "its exporter let go of it")
        return cast(Any, torch.UntypedStorage)._new_shared_fd_cpu(
            mine, size
        )  # It keeps a duplicate of the descriptor.
    finally:
        os.close(mine)


def _allow_a_descriptor_for_every_parameter() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
