"""A run whose driver is killed at any moment leaves no process, shared memory, temporary folder or lock."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from fault_runs import CONFIG, write_data

LEFT_S = 30
"""Seconds after which nothing may be left."""


def processes(mark: str) -> dict[int, str]:
    """Processes that have the mark in their environment, which they inherit."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUN_OF_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())[:120]
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_driver_killed_at_any_moment_leaves_nothing(tmp_path: Path, seed: int) -> None:
    mark, delay_s = uuid.uuid4().hex, random.Random(seed).uniform(0.5, 45)
    write_data(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    temporary = Path("/tmp") / f"orphans-{mark[:8]}"  # short: Ray puts sockets below it
    temporary.mkdir()
    environment = os.environ | {"RUN_OF_TEST": mark, "TMPDIR": str(temporary)}
    driver = subprocess.Popen(
        [sys.executable, "-m", "hybridrl", "launch", "run.yaml", "run.steps=500", "observe.sinks=[]"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started, deadline = set[int](), time.monotonic() + delay_s
    while time.monotonic() < deadline:
        started |= processes(mark).keys()
        time.sleep(0.2)
    assert driver.poll() is None
    started |= processes(mark).keys()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + LEFT_S
    while (processes(mark) or list(temporary.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes(mark) == {}, delay_s
    assert sorted(path.name for path in temporary.iterdir()) == [], delay_s
    names = [path.name for path in Path("/dev/shm").iterdir()]
    assert [name for name in names if any(f"_{pid}_" in name or f"-{pid}-" in name for pid in started)] == []
    temporary.rmdir()
