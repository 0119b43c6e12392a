"""The interface of a transport: a module that exports tensors and attaches to them in another process.

Each file in this folder is a transport. Its file name is in the addresses that it makes.
"""

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Protocol, cast

import torch

from hybridrl import registry


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """The address of a tensor that other processes can attach to. It is picklable and holds no memory."""

    transport: str
    address: tuple[Any, ...]
    """What the transport needs to find the tensor's storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Position of the first element in the storage, in elements."""

    @property
    def is_dense(self) -> bool:
        """Whether the elements are contiguous."""
        steps = accumulate(reversed(self.shape), mul, initial=1)
        places = zip(reversed(self.shape), reversed(self.stride), steps, strict=False)
        return all(length == 1 or stride == step for length, stride, step in places)


class Transport(Protocol):
    """The functions that a transport module must have."""

    def export(self, tensor: torch.Tensor) -> SharedTensor:
        """Make the memory of `tensor` accessible, in place: all tensors on the same storage stay valid."""
        ...

    def attach(self, shared: SharedTensor) -> torch.Tensor:
        """A tensor on the exporter's memory, which stays mapped as long as the tensor exists."""
        ...


_FOLDER = "hybridrl.reshard.transports"


def find(name: str) -> Transport:
    """
    Raises:
        ResourceError: there is no such transport.
    """
    return cast(Transport, registry.module(_FOLDER, name, what="weight transport"))


def of(device: torch.device) -> Transport:
    """The transport for memory of a device."""
    return find("cuda_ipc" if device.type == "cuda" else "shm")


def attach(shared: SharedTensor) -> torch.Tensor:
    """Attach through the transport that exported the tensor."""
    return find(shared.transport).attach(shared)
