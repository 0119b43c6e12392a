"""What the machine is: nvidia-smi's table, CUDA_VISIBLE_DEVICES, memory."""

import os

import pytest

from hybridrl.hosts.machine import GIB, GPU, Machine, memory, parse_gpus, visible

TABLE = """\
0, GPU-1f2e, NVIDIA H100 80GB HBM3, 81559, 4
1, GPU-9a8b, NVIDIA H100 80GB HBM3, 81559, 70000
2, GPU-9a7c, [GPU is lost], [N/A], [N/A]
"""


def test_gpus_are_read_from_nvidia_smi() -> None:
    first, second = parse_gpus(TABLE)
    assert first == GPU(0, "GPU-1f2e", "NVIDIA H100 80GB HBM3", 81559 * 2**20, 4 * 2**20)
    assert second.index == 1 and second.used_bytes == 70000 * 2**20


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
    assert [gpu.index for gpu in visible(parse_gpus(TABLE), names)] == indices


def test_a_machine_describes_itself_in_a_line() -> None:
    plain = Machine(2, 23 * GIB, 20 * GIB, GIB, ())
    assert plain.describe() == "2 cores, 23 GiB, no GPU -> CPU host (gloo)"
    with_gpus = Machine(128, 1000 * GIB, 900 * GIB, GIB, parse_gpus(TABLE))
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
