"""What this machine is, found without importing torch: cores, memory, GPUs. A container's limits count."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from hybridrl.wording import counted

LOOPBACK = "127.0.0.1"
GIB = 2**30

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class GPU:
    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    """Memory that whatever runs there now holds."""


@dataclass(frozen=True, slots=True)
class Machine:
    cores: int
    memory_bytes: int
    available_bytes: int
    """What processes started now can take without swapping."""

    shm_bytes: int
    """Free in /dev/shm, where the object store and engine weights live on CPU."""

    gpus: tuple[GPU, ...]

    @classmethod
    def here(cls) -> "Machine":
        total, available = memory()
        return cls(cores(), total, available, shm_free(), gpus())

    def describe(self) -> str:
        """One line for a person."""
        size = f"{counted(self.cores, 'core')}, {self.memory_bytes / GIB:.0f} GiB"
        if not self.gpus:
            return f"{size}, no GPU -> CPU host (gloo)"
        first = self.gpus[0]
        return f"{size}, {len(self.gpus)} x {first.name} ({first.memory_bytes / GIB:.0f} GiB) -> CUDA host"


def cores() -> int:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    return max(1, min(count, int(quota) // int(period))) if quota.isdecimal() else count


def memory() -> tuple[int, int]:
    """Bytes in total and bytes available, of the machine or of the container, whichever is less."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdecimal() and used.isdecimal():
        lines = (line.split() for line in _read(_CGROUP / "memory.stat").splitlines())
        cache = next(
            (int(count) for name, count in lines if name == "file"), 0
        )  # it goes when memory is wanted
        total, available = min(total, int(limit)), min(available, int(limit) - int(used) + cache)
    return total, available


def shm_free() -> int:
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0


def gpus(nvml: Any = pynvml) -> tuple[GPU, ...]:
    """The GPUs that CUDA would show to this process; none without a driver.

    Args:
        nvml: the functions of NVML, as the module pynvml has them.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return visible(tuple(_working(nvml)), os.environ.get("CUDA_VISIBLE_DEVICES"))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _working(nvml: Any) -> Iterator[GPU]:
    """GPUs in the order of their PCI bus, as nvidia-smi counts them, without those that do not answer."""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            # The second version keeps what the driver reserves out of what is used, as nvidia-smi does
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2)
            uuid, name = nvml.nvmlDeviceGetUUID(gpu), nvml.nvmlDeviceGetName(gpu)
        except nvml.NVMLError:
            continue
        yield GPU(index, uuid, name, memory.total, memory.used)


def visible(found: tuple[GPU, ...], names: str | None) -> tuple[GPU, ...]:
    """
    Args:
        names: as in CUDA_VISIBLE_DEVICES: indices or beginnings of UUIDs, up to the first that does not
            exist. None: all.
    """
    if names is None:
        return found
    shown: list[GPU] = []
    for name in filter(None, map(str.strip, names.split(","))):
        match = [gpu for gpu in found if name == str(gpu.index) or gpu.uuid.startswith(name)]
        if not match:
            break
        shown.append(match[0])
    return tuple(shown)


def _read(path: Path) -> str:
    """A file of the kernel's; empty where this kernel has none."""
    return path.read_text().strip() if path.exists() else ""
