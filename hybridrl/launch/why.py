"""What became of a run, from the files of its folder: `hybridrl why RUN`."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridrl.config.run_folder import is_held
from hybridrl.errors import RunFolderError
from hybridrl.hosts.stacks import is_stopped
from hybridrl.observe.doing import read
from hybridrl.observe.run_session import WHY_BEFORE_FILE, WHY_FILE
from hybridrl.observe.units import duration

_SILENT_S = 10.0
"""A driver that goes on writes doing.json every two seconds."""


def why(folder: Path) -> list[str]:
    """Lines about how a run ended, or what it does.

    Raises:
        RunFolderError: the folder holds no run.
    """
    doing = read(folder)
    if doing is None:
        raise RunFolderError(f"{folder} holds no run that has begun", fix="name a folder of runs/")
    lines = [_state(folder, doing), *_last(doing)]
    report, before = folder / WHY_FILE, folder / WHY_BEFORE_FILE
    if report.exists():
        lines += ["", *report.read_text("utf-8").splitlines()]
    elif before.exists():
        lines += ["", f"{before} tells of the last failure from which the run went on:"]
        lines += before.read_text("utf-8").splitlines()[:1]
    return lines


def _state(folder: Path, doing: dict[str, Any]) -> str:
    end = doing["end"]
    if end is not None:
        return f"the run ended: {end}"
    driver = f"process {doing['pid']} on {doing['host']}"
    if is_held(folder):
        silent_s = time.time() - doing["time"]
        if silent_s < _SILENT_S:
            return f"the run goes on, as {driver}"
        stopped = ", which is stopped, as after SIGSTOP" if _is_stopped(doing) else ""
        return f"the driver does nothing since {duration(silent_s)}: {driver}{stopped}"
    return f"the run was ended from outside, by SIGKILL or with its machine: it wrote no end ({driver})"


def _is_stopped(doing: dict[str, Any]) -> bool:
    """Whether the driver is stopped; False if it is on another machine."""
    return doing["host"] == socket.gethostname() and is_stopped(doing["pid"])


def _last(doing: dict[str, Any]) -> Iterator[str]:
    ago = max(0.0, time.time() - doing["time"])
    if doing["end"] == "finished":
        yield f"it ended {duration(ago)} ago, after step {doing.get('done', doing['step'])}"
        return
    spans = ", ".join(f"{name} for {duration(age_s)}" for name, age_s in doing["doing"])
    yield f"last sign of life: {duration(ago)} ago, in step {doing['step']}: {spans or 'between two phases'}"
