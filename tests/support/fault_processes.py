"""Processes of a run that a test harms from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._soak import is_of, last_step, processes

_MOST_S = 600.0


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    code: int
    out: str
    planted_at: float
    """When the fault began, in seconds since 1970."""

    ended_at: float


def harmed(
    folder: Path,
    name: str,
    words: Sequence[str],
    harm: Callable[[Path], None] | None,
    *,
    before: Sequence[str] = (),
    path: Path | None = None,
    run: Path | None = None,
) -> Ended:
    """Launch run.yaml of a folder, and harm it when its second step is under way.

    Args:
        harm: called with the temporary folder of the run; None: --inject does it.
        before: words in front of the command.
        path: a further folder on PYTHONPATH.
        run: the run folder; None: that of run.folder=runs.
    """
    temporary = Path(tempfile.mkdtemp(prefix="hang-", dir="/tmp"))  # short: Ray puts sockets inside
    run, log = run or folder / "runs" / name, folder / f"{name}.log"
    command = [*before, sys.executable, "-m", "hybridrl", "launch", "run.yaml", f"run.name={name}", *words]
    paths = os.pathsep.join(map(str, (os.environ.get("PYTHONPATH", ""), Path(__file__).parent, path or "")))
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": paths}
    planted_at = 0.0
    with log.open("w") as out:
        driver = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
    try:
        if harm is not None:
            deadline = time.monotonic() + _MOST_S
            while last_step(run) < 1 and time.monotonic() < deadline and driver.poll() is None:
                time.sleep(0.02)
            planted_at = time.time()
            harm(temporary)
        code = driver.wait(_MOST_S)
        ended_at = time.time()
    finally:
        for process in processes(temporary):
            with_signal(process, signal.SIGKILL)
        driver.wait(60)
    temporary.rmdir() if not any(temporary.iterdir()) else None
    return Ended(code, " ".join(log.read_text().split()), planted_at or _noted(run), ended_at)


def _noted(run: Path) -> float:
    """When the planted fault of a run happened."""
    file = run / "faults.jsonl"
    return json.loads(file.read_text().splitlines()[0])["time"] if file.exists() else 0.0


def stop(kind: str) -> Callable[[Path], None]:
    """A harm: SIGSTOP to the processes of a kind."""

    def harm(temporary: Path) -> None:
        found = [process for process in processes(temporary) if is_of(process, kind)]
        assert found, f"no {kind} runs"
        for process in found:
            with_signal(process, signal.SIGSTOP)

    return harm


def with_signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
