"""Removes what a Ray of this machine leaves behind if its driver is killed.

A small process waits until the driver is gone, however it ended. Then it kills what still runs with the Ray's
folder on its command line or as the place of its error log, and removes the folder. It reads /proc and
imports nothing else, so that it takes a few megabytes.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_END_S = 10.0
_GRACE_S = 5.0

_PROGRAM = """
import os, shutil, signal, sys, time
folder, grace_s = sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.buffer.read()  # ends when the driver has closed its end, or is gone

def running():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as line:
                named = folder in line.read() or os.readlink(f"/proc/{pid}/fd/2").startswith(folder)
        except (OSError, ValueError):
            continue
        if named and int(pid) != os.getpid():
            yield int(pid)

deadline = time.monotonic() + grace_s
while list(running()) and time.monotonic() < deadline:
    time.sleep(0.1)
for pid in running():
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def removed_in_any_case(folder: Path) -> Iterator[None]:
    """A context after which a folder, and what runs in it, is gone, also if this process is killed inside."""
    cleaner = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder), str(_GRACE_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and the end of a terminal are not for it
    )
    try:
        yield
    finally:
        assert cleaner.stdin is not None
        cleaner.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            cleaner.wait(_END_S)
