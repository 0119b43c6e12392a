"""Machines that nobody has here, as facts for the doctor."""

from dataclasses import replace
from typing import Any

from hybridrl.doctor.doctor_report import Finding
from hybridrl.doctor.findings import CPU_USEFUL, GPU_ONLY, NEEDED, USEFUL, judge
from hybridrl.hosts.facts import Facts, Folder, Port
from hybridrl.hosts.machine import GIB, GPU, Machine

ROOM = Folder("/somewhere", 500 * GIB, True)


def machine(num_gpus: int = 0, **changes: Any) -> Machine:
    gpus = tuple(GPU(i, f"GPU-{i}", "NVIDIA H100 80GB HBM3", 80 * GIB, 0) for i in range(num_gpus))
    return replace(Machine(96, 1024 * GIB, 900 * GIB, 512 * GIB, gpus), **changes)


def laptop(**changes: Any) -> Facts:
    """Without GPUs, all in order."""
    whole = Facts(
        machine=machine(),
        version="0.1.0",
        python="3.11.7",
        installed=dict.fromkeys((*NEEDED, *USEFUL, *CPU_USEFUL), "1.0"),
        has_standins=True,
        max_open_files=65536,
        max_locked_bytes=8 * 2**20,
        run_folder=ROOM,
        cache_folder=ROOM,
        temporary_folder=ROOM,
    )
    return replace(whole, **changes)


def node(num_gpus: int = 8, **changes: Any) -> Facts:
    """With H100s and InfiniBand, all in order."""
    whole = replace(
        laptop(),
        machine=machine(num_gpus),
        installed=dict.fromkeys((*NEEDED, *USEFUL, *GPU_ONLY), "1.0") | {"nvidia-nccl-cu13": "2.30.7"},
        driver="580.65.06",
        torch_cuda="13.0",
        infiniband=tuple(Port(f"mlx5_{i}/1", "ACTIVE", "400 Gb/sec (4X NDR)") for i in range(8)),
        max_locked_bytes=-1,
    )
    return replace(whole, **changes)


def finding(facts: Facts, name: str) -> Finding:
    """The one of this name."""
    (found,) = [one for one in judge(facts).findings if one.name == name]
    return found
