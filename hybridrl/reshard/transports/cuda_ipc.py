"""CUDA IPC, for processes on one GPU.

torch keeps exported memory until the attached process releases it, and expects one such process per export.
So the exporter must keep its tensor as long as another process writes it, and memory that was exported but
never attached is freed only when the exporter ends. A process cannot attach to its own memory.
"""

import multiprocessing
from typing import Any, cast

import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard.transports.base import SharedTensor

__all__ = ["SharedTensor", "attach", "export", "self_test"]

_EXPANDABLE = b"e"
"""Second byte of torch's handle for memory in an expandable segment; it is b"c" for cudaMalloc memory."""

_SELF_TEST_S = 120.0
_SELF_TEST_VALUE = 3.0


def export(tensor: torch.Tensor) -> SharedTensor:
    """Make the memory of `tensor` accessible to other processes on its GPU. Synchronises the GPU.

    Raises:
        ResourceError: the tensor is not on a GPU, is empty, or its memory came from an allocator without IPC.
    """
    if not tensor.is_cuda:
        raise ResourceError(f"CUDA IPC holds tensors on a GPU, not one on {tensor.device}", fix="use shm")
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        raise ResourceError("an empty tensor has no memory that another process could attach to")
    torch.cuda.synchronize(tensor.device)  # The process that attaches need not wait for an event.
    try:
        _, handle, size, offset, *counter, event, _ = cast(Any, storage)._share_cuda_()
    except RuntimeError as error:
        raise ResourceError(
            f"cannot share {storage.nbytes()} bytes of {tensor.device}: {error}",
            fix="allocate what the engine exports with cudaMalloc, outside of memory savers",
        ) from error
    if handle[1:2] == _EXPANDABLE:
        cast(Any, torch.UntypedStorage)._release_ipc_counter_cuda(*counter)
        raise ResourceError(
            f"{storage.nbytes()} bytes of {tensor.device} lie in an expandable segment, which is not shared",
            fix="remove expandable_segments from PYTORCH_CUDA_ALLOC_CONF",
        )
    address = (_uuid(tensor.device.index), handle, size, offset, *counter, event)
    return SharedTensor(
        "cuda_ipc", address, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    )


def attach(shared: SharedTensor) -> torch.Tensor:
    """Map the memory of an exported tensor.

    Raises:
        ResourceError: this process does not see the GPU, this process is the exporter, or the exporter ended.
    """
    uuid, *place = shared.address
    device = _device(uuid)
    try:
        # The last argument would make the stream wait for the exporter's event.
        storage = cast(Any, torch.UntypedStorage)._new_shared_cuda(device, *place, False)
    except RuntimeError as error:
        raise ResourceError(
            f"cannot map memory of GPU {uuid}: {error}", fix="restart the engine that exported it"
        ) from error
    empty = torch.empty(0, dtype=shared.dtype, device=f"cuda:{device}")
    return empty.set_(storage, shared.offset, shared.shape, shared.stride)


def self_test(device: int = 0) -> None:
    """Let another process write into memory of this one. It takes as long as a process needs to start.

    Raises:
        ResourceError: there is no such GPU, or the written values did not arrive.
    """
    if device >= torch.cuda.device_count():
        raise ResourceError(f"there is no GPU {device} here: torch sees {torch.cuda.device_count()}")
    memory = torch.zeros(1 << 20, device=f"cuda:{device}")
    part = memory[1000:]
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(export(part),))
    process.start()
    process.join(_SELF_TEST_S)
    if process.is_alive():
        process.kill()
        process.join()
    arrived = bool((part == _SELF_TEST_VALUE).all()) and not memory[:1000].any()
    if process.exitcode or not arrived:
        raise ResourceError(
            f"CUDA IPC does not work on GPU {device}: the other process ended with {process.exitcode}, "
            f"and its bytes {'arrived' if arrived else 'did not arrive'}",
            fix="run trainer and engine on one host, in one IPC namespace",
        )


def _fill(shared: SharedTensor) -> None:
    attach(shared).fill_(_SELF_TEST_VALUE)
    torch.cuda.synchronize()


def _uuid(device: int) -> str:
    """Id of a GPU that is the same in every process; device indices depend on CUDA_VISIBLE_DEVICES."""
    return str(torch.cuda.get_device_properties(device).uuid)


def _device(uuid: str) -> int:
    for device in range(torch.cuda.device_count()):
        if _uuid(device) == uuid:
            return device
    raise ResourceError(
        f"this process does not see GPU {uuid}: torch sees {torch.cuda.device_count()}",
        fix="run it on the GPU of the engine",
    )
