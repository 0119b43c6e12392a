"""What a transport is: a module that exports a tensor's memory and attaches to it from another process.

A file in this folder is a transport, and its name is the name that its addresses carry.
"""

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Protocol, cast

import torch

from hybridrl import registry


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """Where a tensor lies that another process may attach to. Small, picklable, holds no memory itself."""

    transport: str
    address: tuple[Any, ...]
    """What the transport needs to find the storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Of the first element in the storage, in elements."""

    @property
    def is_dense(self) -> bool:
        """Rows follow one another without gaps."""
        steps = accumulate(reversed(self.shape), mul, initial=1)
        places = zip(reversed(self.shape), reversed(self.stride), steps, strict=False)
        return all(length == 1 or stride == step for length, stride, step in places)


class Transport(Protocol):
    """What a transport module offers."""

    def export(self, tensor: torch.Tensor) -> SharedTensor:
        """Make the memory of `tensor` reachable, in place: every tensor on the same storage stays valid."""
        ...

    def attach(self, shared: SharedTensor) -> torch.Tensor:
        """A tensor on the exporter's memory. It stays mapped as long as the tensor lives."""
        ...


_FOLDER = "hybridrl.reshard.transports"


def find(name: str) -> Transport:
    """
    Raises:
        ResourceError: this version has no such transport.
    """
    return cast(Transport, registry.module(_FOLDER, name, what="weight transport"))


def of(device: torch.device) -> Transport:
    """The one for memory of a device."""
    return find("cuda_ipc" if device.type == "cuda" else "shm")


def attach(shared: SharedTensor) -> torch.Tensor:
    """Attach through the transport that exported the tensor."""
    return find(shared.transport).attach(shared)
