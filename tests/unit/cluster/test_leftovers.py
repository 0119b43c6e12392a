"""A folder and what runs in it are gone after its context, however the process ended that was in it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hybridrl.cluster.leftovers import removed_in_any_case

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from hybridrl.cluster.leftovers import removed_in_any_case
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "log").write_text("of a run")
with removed_in_any_case(folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
    print(child.pid, flush=True)
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
    owner = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    assert folder.exists() and not gone(child)
    owner.kill()
    owner.wait()
    assert within_a_minute(lambda: not folder.exists() and gone(child))


def test_a_process_that_goes_on_leaves_nothing_either(tmp_path: Path) -> None:
    folder = tmp_path / "of_a_run"
    folder.mkdir()
    before = {process.pid for process in psutil.Process().children()}
    with removed_in_any_case(folder):
        (folder / "log").write_text("of a run")
    assert not folder.exists() and {process.pid for process in psutil.Process().children()} <= before
