"""A folder and what runs in it are gone after its context, however the process ended that was in it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from hybridrl.cluster.leftovers import removed_in_any_case

CHILD = """
import os, subprocess, tempfile, time
tempfile.mkdtemp(prefix=os.environ["OF_TEST"])
print(subprocess.Popen(["sleep", "600"], env={}).pid, flush=True)
time.sleep(600)
"""
"""A process whose own child has not inherited its environment."""

PROGRAM = f"""
CHILD = {CHILD!r}
import subprocess, sys, time
from pathlib import Path
from hybridrl.cluster.leftovers import marked, removed_in_any_case
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "log").write_text("of a run")
with removed_in_any_case(folder):
    with marked(folder):
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    print(child.pid, child.stdout.readline(), flush=True)
    time.sleep(600)
"""


def within_a_minute(is_so) -> bool:
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_killed_process_leaves_neither_the_folder_nor_what_ran_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "of_a_run"
    prefix = f"of-{os.getpid()}-"
    owner = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OF_TEST": prefix},
    )
    assert owner.stdout is not None
    child, grandchild = map(int, owner.stdout.readline().split())
    reader = subprocess.Popen(["tail", "-f", str(folder / "log")], stdout=subprocess.DEVNULL)
    assert folder.exists() and not gone(child) and not gone(grandchild)
    owner.kill()
    owner.wait()
    assert within_a_minute(lambda: not folder.exists() and gone(child) and gone(grandchild))
    assert list(Path(tempfile.gettempdir()).glob(f"{prefix}*")) == []
    assert reader.poll() is None  # whoever reads the logs is not of the run
    reader.kill()
    reader.wait()


def test_a_process_that_goes_on_leaves_nothing_either(tmp_path: Path) -> None:
    folder = tmp_path / "of_a_run"
    folder.mkdir()
    before = {process.pid for process in psutil.Process().children()}
    with removed_in_any_case(folder):
        (folder / "log").write_text("of a run")
    assert not folder.exists() and {process.pid for process in psutil.Process().children()} <= before
