"""POSIX shared memory, for processes of one machine on CPU.

The storage itself moves, so a live model keeps its parameters, views and ties. A segment has no name:
processes reach it through the exporter's descriptor, and the kernel frees it after its last user, also one
that was killed.
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
    """Move the storage of `tensor` to shared memory in place; one that is there already stays there.

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
        # torch's other way of sharing, by name, needs its manager process, and breaks when that one is ended.
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
    """
    Raises:
        ResourceError: the exporter is gone, and its memory with it.
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
        if _identity(mine) != identity:  # Its number has gone to another file.
            raise OSError(errno.ESTALE, "its exporter let go of it")
        return cast(Any, torch.UntypedStorage)._new_shared_fd_cpu(mine, size)  # Keeps a duplicate of it.
    finally:
        os.close(mine)


def _allow_a_descriptor_for_every_parameter() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
