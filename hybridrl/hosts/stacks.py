"""Python stacks of running processes, which each process writes itself when it gets a signal.

faulthandler writes them from inside the signal handler, so this works while a process waits in C code or
holds the interpreter's lock. It needs no rights, and no process is halted. Lines go to standard error: those
of a worker are in its file in Ray's log folder, and those of an engine in the engine's log.
"""

import faulthandler
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

SIGNAL = signal.SIGUSR2

_WAIT_S = 3.0
_QUIET_S = 0.5
_POLL_S = 0.02


def answer() -> int:
    """Write stacks from now on when SIGNAL comes; returns the id of this process."""
    faulthandler.register(SIGNAL, all_threads=True)
    return os.getpid()


def stacks_of(files: Mapping[int, Path], worker_logs: Path | None = None) -> dict[int, str]:
    """Ask processes of this machine for their stacks, and wait a few seconds for them.

    Args:
        files: process id -> file that has its standard error. A process with another one is not asked: it is
            none of ours, which got an old id.
        worker_logs: Ray's log folder, which replaces an empty path by that of a worker's file.

    Returns:
        Process id -> its stacks; "" if it is gone, or does not run, as after SIGSTOP.
    """
    if worker_logs is not None:
        files = {pid: error_file(worker_logs, pid) if file == Path() else file for pid, file in files.items()}
    before = {pid: file.stat().st_size for pid, file in files.items() if file.exists()}
    asked = {pid: files[pid] for pid in before if _ask(pid, files[pid])}
    _await_quiet(asked.values())
    return {pid: _after(files[pid], before[pid]) if pid in asked else "" for pid in files}


def error_file(logs: Path, pid: int) -> Path:
    """The file that has the standard error of a Ray worker."""
    found = sorted(logs.glob(f"worker-*-{pid}.err"))
    return found[-1] if found else logs / f"worker-{pid}.err"


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is there and stopped, as after SIGSTOP."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _ask(pid: int, file: Path) -> bool:
    try:
        if not os.path.samefile(f"/proc/{pid}/fd/2", file):
            return False
        os.kill(pid, SIGNAL)
    except OSError:  # it is gone
        return False
    return True


def _await_quiet(files: Iterable[Path]) -> None:
    """Wait until no file has grown for a moment."""
    files, deadline = list(files), time.monotonic() + _WAIT_S
    sizes, since = [0] * len(files), time.monotonic()
    while files and time.monotonic() < deadline and time.monotonic() - since < _QUIET_S:
        time.sleep(_POLL_S)
        now = [file.stat().st_size for file in files]
        if now != sizes:
            sizes, since = now, time.monotonic()


def _after(file: Path, start: int) -> str:
    with file.open("rb") as lines:
        lines.seek(start)
        return lines.read().decode(errors="replace").strip()
