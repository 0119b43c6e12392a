"""What the doctor says of machines, one thing out of order at a time."""

from dataclasses import replace

import pytest
from doctor_facts import finding, laptop, machine, node

from hybridrl.doctor.findings import GPU_ONLY, judge
from hybridrl.hosts.facts import Facts, Folder, Port
from hybridrl.hosts.machine import GIB

FULL = Folder("/full", GIB // 10, True)
CLOSED = Folder("/closed/runs", 500 * GIB, False)


@pytest.mark.parametrize("facts", [laptop(), node(), node(num_gpus=1)], ids=["laptop", "node", "one GPU"])
def test_a_machine_in_order_has_no_cures(facts: Facts) -> None:
    report = judge(facts)
    assert report.can_run
    assert not [one for one in report.findings if one.status != "ok" or one.fix]


BROKEN = [
    (laptop(python="3.10.2"), "python", "missing", "3.12"),
    (laptop(machine=machine(cores=1)), "cores", "note", "container"),
    (laptop(machine=machine(available_bytes=2 * GIB)), "memory", "note", "6.0 GiB"),
    (laptop(machine=machine(shm_bytes=64 * 2**20)), "/dev/shm", "missing", "--shm-size"),
    (node(machine=machine(8, shm_bytes=64 * 2**20)), "/dev/shm", "missing", "--ipc=host"),
    (node(machine=machine(8, shm_bytes=2 * GIB)), "/dev/shm", "note", "8.0 GiB"),
    (laptop(run_folder=FULL), "disk", "note", "run.folder"),
    (laptop(run_folder=CLOSED), "disk", "missing", "run.folder"),
    (laptop(cache_folder=CLOSED), "caches", "note", "XDG_CACHE_HOME"),
    (laptop(temporary_folder=replace(FULL, path="/x" * 40)), "temporary", "missing", "TMPDIR"),
    (laptop(temporary_folder=CLOSED), "temporary", "missing", "TMPDIR"),
    (node(driver="535.104.05"), "driver", "missing", "580"),
    (node(driver="550.54.15", torch_cuda=None), "driver", "missing", "gpu.txt"),
    (laptop(driver="580.65.06"), "driver", "note", "--gpus all"),
    (node(environment={"NCCL_P2P_DISABLE": "1"}), "NCCL", "note", "unset NCCL_P2P_DISABLE"),
    (node(installed=laptop().installed), "NCCL", "missing", "gpu.txt"),
    (node(infiniband=()), "InfiniBand", "note", "--device=/dev/infiniband"),
    (node(infiniband=(Port("mlx5_0/1", "DOWN", "10 Gb/sec"),)), "InfiniBand", "note", "NCCL_IB_HCA"),
    (laptop(max_open_files=1024), "open files", "note", "ulimit -n"),
    (node(max_locked_bytes=64 * 2**10), "locked memory", "note", "memlock=-1"),
    (laptop(installed={}), "torch", "missing", "make setup"),
    (laptop(installed={}), "mlflow", "note", "make setup"),
    (node(installed={}), GPU_ONLY[0], "missing", "gpu-source.txt"),
    (laptop(has_standins=False), "stand-ins", "missing", "standins install"),
    (laptop(pins={"torch": "2.0"}), "versions", "note", "pip install --no-deps torch==2.0"),
    (laptop(vllm="0.32.0", vllm_python="3.12"), "vLLM", "note", "make setup-vllm PYTHON=python3.11"),
    (laptop(loopback_error="Network is down"), "loopback", "missing", "ip link"),
    (laptop(environment={"RAY_ADDRESS": "10.0.0.1:6379"}), "Ray here", "note", "unset RAY_ADDRESS"),
    (laptop(listening=frozenset({6379})), "Ray here", "note", "--port"),
    (laptop(ray_sessions=("/tmp/ray/session_2026",)), "Ray here", "note", "rm -rf /tmp/ray"),
]


@pytest.mark.parametrize(
    ("facts", "name", "status", "cure"), BROKEN, ids=[f"{one[1]}, {one[3]}" for one in BROKEN]
)
def test_what_is_out_of_order_is_named_with_its_cure(facts: Facts, name: str, status: str, cure: str) -> None:
    found = finding(facts, name)
    assert found.status == status and cure in found.fix
    assert judge(facts).can_run == all(one.status != "missing" for one in judge(facts).findings)


@pytest.mark.parametrize("facts", [laptop(), node()], ids=["laptop", "node"])
def test_the_names_are_those_of_every_such_machine(facts: Facts) -> None:
    bare = replace(facts, installed={}, pins={"torch": "1"}, infiniband=(), listening=frozenset({6379}))
    assert [one.name for one in judge(bare).findings] == [one.name for one in judge(facts).findings]


def test_gpus_of_two_kinds_are_noticed() -> None:
    first, *rest = machine(8).gpus
    mixed = machine(gpus=(replace(first, name="NVIDIA A100"), *rest))
    assert finding(node(machine=mixed), "GPUs").status == "note"


def test_a_gpu_in_use_is_noticed() -> None:
    first, *rest = machine(8).gpus
    used = machine(gpus=(replace(first, used_bytes=30 * GIB), *rest))
    assert "runs on 0" in finding(node(machine=used), "GPUs").found


def test_a_job_of_slurm_is_named() -> None:
    inside = laptop(environment={"SLURM_JOB_ID": "481", "SLURM_JOB_NUM_NODES": "4"}, has_slurm=True)
    assert finding(inside, "Slurm").found == "inside job 481, nodes: 4"
    assert "--on slurm" in finding(laptop(has_slurm=True), "Slurm").found


def test_a_running_cluster_is_no_collision() -> None:
    assert finding(laptop(listening=frozenset({6379}), num_ray_processes=2), "Ray here").status == "ok"


def test_a_build_of_the_pinned_version_fits() -> None:
    installed = laptop().installed | {"torch": "2.13.0+cpu"}
    assert finding(laptop(installed=installed, pins={"torch": "2.13.0"}), "versions").status == "ok"


def test_many_wrong_versions_are_counted() -> None:
    names = [f"p{i}" for i in range(9)]
    facts = laptop(installed=laptop().installed | dict.fromkeys(names, "1"), pins=dict.fromkeys(names, "2"))
    found = finding(facts, "versions")
    assert "and 5 more" in found.found and found.fix == "make setup"
