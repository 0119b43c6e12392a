"""Machine code that a launch of a Triton kernel compiles for a GPU that is not there.

Triton's own launcher runs: it reads the types and alignments of the arguments, as it does on the GPU, and
calls its compiler and ptxas. Only the launch itself is left out.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CAPABILITIES = {"Hopper": 90, "Blackwell": 100}


class Kernel:
    """Replaces a kernel in the module that launches it."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.ptx: list[str] = []
        """Of every launch, in order."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._compile, grid)

    def _compile(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        compiled = self._kernel.warmup(*args, grid=grid, **options)
        assert compiled.asm["cubin"]
        self.ptx.append(compiled.asm["ptx"])


@contextmanager
def compiled_for(capability: int) -> Iterator[None]:
    """A context in which Triton compiles for a compute capability, 90 for 9.0."""
    before = driver._active
    driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        driver.set_active(before)


def widest(ptx: str, kind: str) -> int:
    """Most bytes that one instruction of a thread loads ("ld") or stores ("st") in device memory."""
    found = re.findall(rf"\b{kind}\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max(int(several or 1) * int(bits) // 8 for several, bits in found)


class _Driver:
    """Triton's driver, for as much of it as a compilation asks."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0
