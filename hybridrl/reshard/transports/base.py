"""What a transport is: a module that exports a tensor's memory and attaches to it from another process.

A file in this folder is a transport, and its name is the name that its addresses carry.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from hybridrl import registry
from hybridrl.errors import ResourceError


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """Where a tensor lies that another process may attach to. Small and picklable; holds no memory by itself."""

    transport: str
    address: tuple[Any, ...]
    """What the transport needs to find the storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Of the first element in the storage, in elements."""


class Transport(Protocol):
    """What a transport module offers."""

    def export(self, tensor: torch.Tensor) -> SharedTensor:
        """Make the memory of `tensor` reachable, in place: every tensor on the same storage stays valid."""
        ...

    def attach(self, shared: SharedTensor) -> torch.Tensor:
        """A tensor on the exporter's memory. It stays mapped as long as the tensor lives."""
        ...


def find(name: str) -> Transport:
    """
    Raises:
        ResourceError: this version has no such transport.
    """
    known = [n for n in registry.names(__package__) if n != "base"]
    if name not in known:
        raise ResourceError(f"no weight transport {name!r} here", fix=f"use one of {', '.join(known)}")
    return cast(Transport, importlib.import_module(f"{__package__}.{name}"))


def attach(shared: SharedTensor) -> torch.Tensor:
    """Attach through the transport that exported the tensor."""
    return find(shared.transport).attach(shared)
