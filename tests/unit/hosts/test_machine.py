"""What the machine is: what NVML says, CUDA_VISIBLE_DEVICES, memory."""

import os
from types import SimpleNamespace

import pynvml
import pytest

from hybridrl.hosts.machine import GIB, GPU, Machine, gpus, memory, visible

H100 = 81559 * 2**20


class NVMLError(Exception):
    pass


class Driver:
    """What pynvml has functions for: GPUs as (UUID, name, bytes in total, bytes used); None is one lost."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self, *gpus: tuple[str, str, int, int] | None, works: bool = True) -> None:
        self.gpus, self.works, self.open = gpus, works, 0

    def nvmlInit(self) -> None:
        if not self.works:
            raise NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        assert self.open
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, str, int, int]:
        if (gpu := self.gpus[index]) is None:
            raise NVMLError
        return gpu

    def nvmlDeviceGetUUID(self, gpu: tuple[str, str, int, int]) -> str:
        return gpu[0]

    def nvmlDeviceGetName(self, gpu: tuple[str, str, int, int]) -> str:
        return gpu[1]

    def nvmlDeviceGetMemoryInfo(self, gpu: tuple[str, str, int, int], version: int) -> SimpleNamespace:
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(total=gpu[2], used=gpu[3])


NAME = "NVIDIA H100 80GB HBM3"
FIRST, SECOND = ("GPU-1f2e", NAME, H100, 4 * 2**20), ("GPU-9a8b", NAME, H100, 70000 * 2**20)


@pytest.fixture(autouse=True)
def _all_gpus_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_of_the_driver_that_answer() -> None:
    driver = Driver(FIRST, None, SECOND)
    assert gpus(driver) == (GPU(0, *FIRST), GPU(2, *SECOND))
    assert driver.open == 0


def test_without_a_driver_there_are_no_gpus() -> None:
    assert gpus(Driver(FIRST, works=False)) == ()


def test_the_environment_chooses_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.uuid for gpu in gpus(Driver(FIRST, SECOND))] == ["GPU-9a8b"]


def test_the_library_has_what_is_asked_of_it() -> None:
    asked = [name for name in vars(Driver) if name.startswith(("nvml", "NVML"))]
    assert asked and all(hasattr(pynvml, name) for name in asked)


@pytest.mark.parametrize(
    ("names", "indices"),
    [
        (None, [0, 1]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("1,0", [1, 0]),
        ("GPU-9a8b", [1]),
        ("0,7,1", [0]),
        (" 0 , 1", [0, 1]),
    ],
)
def test_only_visible_gpus_count(names: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible((GPU(0, *FIRST), GPU(1, *SECOND)), names)] == indices


def test_a_machine_describes_itself_in_a_line() -> None:
    plain = Machine(2, 23 * GIB, 20 * GIB, GIB, ())
    assert plain.describe() == "2 cores, 23 GiB, no GPU -> CPU host (gloo)"
    with_gpus = Machine(128, 1000 * GIB, 900 * GIB, GIB, (GPU(0, *FIRST), GPU(1, *SECOND)))
    assert with_gpus.describe() == "128 cores, 1000 GiB, 2 x NVIDIA H100 80GB HBM3 (80 GiB) -> CUDA host"


def test_this_machine_has_what_the_kernel_says() -> None:
    here = Machine.here()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert (
        0
        < here.available_bytes
        <= here.memory_bytes
        <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    assert memory()[0] == here.memory_bytes
