"""Stacks of processes that wait in Python and in C code, and of those that cannot answer."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridrl.hosts.stacks import stacks_of

PROGRAM = """
import sys, time
from hybridrl.hosts.stacks import answer

def waits_in_python():
    while True:
        time.sleep(0.01)

def waits_in_c():
    max(iter(int, 1))  # it never leaves this call, and holds the interpreter's lock

answer()
sys.stderr.write("before\\n")
print("ready", flush=True)
globals()[sys.argv[1]]()
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator:
    running = []

    def start(name: str) -> tuple[int, Path]:
        file = tmp_path / f"{name}.err"
        with file.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, name], stdout=subprocess.PIPE, stderr=log
            )
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process.pid, file

    yield start
    for process in running:
        process.kill()
        process.wait()


def stacks_within(files: dict[int, Path], name: str, logs: Path | None = None) -> str:
    """The stacks once they have a function, which the process may not have entered at first."""
    deadline, found = time.monotonic() + 60, ""
    while name not in found and time.monotonic() < deadline:
        (found,) = stacks_of(files, logs).values()
    return found


@pytest.mark.parametrize("name", ["waits_in_python", "waits_in_c"])
def test_a_process_writes_where_it_is_and_goes_on(started, name: str) -> None:
    pid, file = started(name)
    found = stacks_within({pid: file}, name)
    assert f"in {name}" in found and "before" not in found
    os.kill(pid, 0)


def test_a_process_with_another_standard_error_is_not_asked(started, tmp_path: Path) -> None:
    """It would be ended by the signal if it were somebody else's."""
    pid, _ = started("waits_in_python")
    (tmp_path / "other.err").write_text("of a process that had this id before")
    assert stacks_of({pid: tmp_path / "other.err", 2**22 + 1: tmp_path / "none.err"}) == {
        pid: "",
        2**22 + 1: "",
    }


def test_the_file_of_a_worker_is_found_in_rays_folder(started, tmp_path: Path) -> None:
    pid, file = started("waits_in_python")
    file.rename(tmp_path / f"worker-a-01-{pid}.err")
    assert "in waits_in_python" in stacks_within({pid: Path()}, "waits_in_python", tmp_path)
