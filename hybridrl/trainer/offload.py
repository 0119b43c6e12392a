"""Moves tensors between phases: to host memory while engines generate, and back before they are needed.

A storage that is away has no bytes, so every view of it stays what it is and is valid again afterwards. On
CUDA, copies run on a stream of their own into pinned memory: `leave` waits for them, `begin_return` does not.
The engines beside then find what was left: `leave` ends with what the process itself kept for reuse.
Without CUDA the same path copies within the machine's memory and frees the storage.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hybridrl.hosts import cuda


class Offload:
    """What leaves the device together; at home to begin with."""

    def __init__(self, kept: Iterable[Tensor], scratch: Iterable[Tensor] = ()) -> None:
        """
        Args:
            kept: come back with their contents.
            scratch: come back with any contents: what is in them is written before it is read.
        """
        self._kept = [_Parked(storage) for storage in _storages(kept)]
        self._scratch = [(storage, storage.nbytes()) for storage in _storages(scratch)]
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._away = False

    def leave(self) -> None:
        """Free the device memory, for other processes too; nothing happens if it is free already.

        Where nothing is to leave, what the work since the return took is freed all the same.
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
        """Allocate, and start to copy back; `finish_return` comes before any use.

        Nothing happens if it is at home.
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
        """What the device does from here on finds everything in place."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextlib.contextmanager
    def at_home(self) -> Iterator[None]:
        """Inside, everything is back; afterwards it is where it was."""
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
        self._stream.wait_stream(torch.cuda.current_stream())  # what is copied was computed there
        with torch.cuda.stream(self._stream):
            yield


class _Parked:
    """A storage, and its place in host memory, which is kept from one leave to the next."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage, self.size = storage, storage.nbytes()
        self._host: Tensor | None = None

    def copy_out(self) -> None:
        on_gpu = self.storage.device.type == "cuda"
        if self._host is None:
            self._host = torch.empty(self.size, dtype=torch.uint8, pin_memory=on_gpu)
        self._host.copy_(self._bytes(), non_blocking=on_gpu)

    def copy_in(self) -> None:
        assert self._host is not None, "it left before"
        self._bytes().copy_(self._host, non_blocking=self.storage.device.type == "cuda")
        if self.storage.device.type != "cuda":
            self._host = None  # the machine's memory would hold it twice

    def _bytes(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Each once, whatever number of tensors look into it."""
    found = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return list(found.values())
