"""Offloads tensors to host memory while engines generate, and brings them back before they are needed.

An offloaded storage is resized to 0 bytes, so all views of it stay in place and are valid again afterwards.
On CUDA, copies run on a separate stream into pinned memory: `leave` waits for them, `begin_return` does not.
`leave` finally returns torch's cached memory to the driver, so that colocated engines can use it.
Without CUDA the same code copies within host memory and frees the storage.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hybridrl.hosts import cuda


class Offload:
    """Tensors that leave the device together. They are on the device at first."""

    def __init__(self, kept: Iterable[Tensor], scratch: Iterable[Tensor] = ()) -> None:
        """
        Args:
            kept: tensors that come back with their contents.
            scratch: tensors that come back with arbitrary contents, because they are written before they are
                read.
        """
        self._kept = [_Parked(storage) for storage in _storages(kept)]
        self._scratch = [(storage, storage.nbytes()) for storage in _storages(scratch)]
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._away = False

    def leave(self) -> None:
        """Free the device memory, for other processes too. If it is free already, this does nothing.

        Torch's cached memory is returned even if there are no tensors to offload.
        """
        if self._away:
            return
        with self._copying():
            for parked in self._kept:
                parked.copy_out()
        if self._stream is not None:
            self._stream.synchronize()
        for storage in [*(parked.storage for parked in self._kept), *(s for s, _ in self._scratch)]:
            storage.resize_(0)
        cuda.release_cached_memory()
        self._away = True

    def begin_return(self) -> None:
        """Allocate the memory and start copying back; call `finish_return` before any use.

        If the tensors are on the device already, this does nothing.
        """
        if not self._away:
            return
        for storage, size in self._scratch:
            storage.resize_(size)
        for parked in self._kept:
            parked.storage.resize_(parked.size)
        with self._copying():
            for parked in self._kept:
                parked.copy_in()
        self._away = False

    def finish_return(self) -> None:
        """Make later work on the device wait until the tensors are back."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextlib.contextmanager
    def at_home(self) -> Iterator[None]:
        """A context in which the tensors are on the device; it offloads them again if they were before."""
        away = self._away
        self.begin_return()
        self.finish_return()
        try:
            yield
        finally:
            if away:
                self.leave()

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())  # the tensors to copy are computed there
        with torch.cuda.stream(self._stream):
            yield


class _Parked:
    """A storage and its buffer in host memory; on CUDA the buffer is kept for the next offload."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage, self.size = storage, storage.nbytes()
        self._host: Tensor | None = None

    def copy_out(self) -> None:
        on_gpu = self.storage.device.type == "cuda"
        if self._host is None:
            self._host = torch.empty(self.size, dtype=torch.uint8, pin_memory=on_gpu)
        self._host.copy_(self._bytes(), non_blocking=on_gpu)

    def copy_in(self) -> None:
        assert self._host is not None, "copy_out was called before"
        self._bytes().copy_(self._host, non_blocking=self.storage.device.type == "cuda")
        if self.storage.device.type != "cuda":
            self._host = None  # otherwise host memory would hold the tensor twice

    def _bytes(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """The storages of the tensors, each once even if several tensors are views of it.

    On a machine with GPUs, those in host memory are left out: nothing of them could leave a GPU.
    """
    found = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    on_gpus = torch.cuda.is_available()
    return [storage for storage in found.values() if storage.device.type == "cuda" or not on_gpus]
