"""Removes what a Ray of this machine leaves behind if its driver is killed.

A small process waits until the driver is gone, however it ended. Then it kills what still runs of that Ray,
and removes the folder. A process is the Ray's if it inherited its mark, an environment variable; if
its error log is in the folder; or if it descends from such a process. Whoever merely reads a file of the
folder, as `tail`, is not. The small process reads /proc and imports nothing else, so that it takes a few
megabytes.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hybridrl.cluster.env import inherited

_END_S = 10.0
_GRACE_S = 5.0

_MARK = "HYBRIDRL_RAY_FOLDER"

_PROGRAM = """
import os, shutil, signal, sys, time
folder, mark, grace_s = sys.argv[1], sys.argv[2].encode(), float(sys.argv[3])
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.buffer.read()  # ends when the driver has closed its end, or is gone
known = set()

def processes():
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                after_name = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if after_name[0] != b"Z":
            yield pid, int(after_name[1]), int(after_name[19])  # parent, start time

def marked(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\\0"):
                return True
        return os.readlink(f"/proc/{pid}/fd/2").startswith(folder + "/")
    except OSError:
        return False

def running():
    here = list(processes())
    own = {pid for pid, _, started in here if (pid, started) in known or marked(pid)}
    while more := {pid for pid, parent, _ in here if parent in own} - own:
        own |= more
    own.discard(os.getpid())
    known.update((pid, started) for pid, _, started in here if pid in own)
    return own

deadline = time.monotonic() + grace_s
while running() and time.monotonic() < deadline:
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
    """A context after which a folder, and what runs in it, is gone, also if this process is killed inside.

    What runs in it is started inside `marked`.
    """
    cleaner = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder), f"{_MARK}={folder}", str(_GRACE_S)],
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


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[None]:
    """A context in which processes that are started, and those that they start, belong to a folder: they have
    its mark, and make their temporary files inside it, so that these go with it."""
    temporary = folder / "t"  # short, because engines put sockets inside, whose paths may have 107 bytes
    temporary.mkdir(exist_ok=True)
    with inherited(_MARK, str(folder)), inherited("TMPDIR", str(temporary)):
        yield
