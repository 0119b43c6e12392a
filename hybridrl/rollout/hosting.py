"""Runs in the host process of an engine, of any kind: ends everything when the owner is gone."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from glob import escape
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

_EXIT_S = 10.0
_POLL_MS = 200


@contextlib.contextmanager
def ends_with_owner(connection: Connection, clean_up: Callable[[], None]) -> Iterator[None]:
    """Watch the owner while the engine starts, which does not read the pipe and may take minutes.

    If the owner ends, this process and all others of its group end too.

    Args:
        clean_up: ends the children and removes what they leave behind.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(connection, clean_up, over), daemon=True, name="owner")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def child_ids() -> list[int]:
    """Ids of all processes that descend from this one."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


def shared_files(prefixes: tuple[str, ...]) -> list[str]:
    """Patterns of files in shared memory that this process or one that descends from it has mapped.

    Args:
        prefixes: how the names begin.
    """
    found = set()
    for pid in (os.getpid(), *child_ids()):
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text("utf-8")
            found.update(line.rpartition("/dev/shm/")[2] for line in maps.splitlines() if "/dev/shm/" in line)
    return [escape(n) for n in sorted(found) if n.startswith(prefixes) and " (deleted)" not in n]


def say_what_ended(children: Iterable[BaseProcess]) -> None:
    """Print to the log which children a signal has ended; process.py looks for these lines."""
    for child in children:
        code = child.exitcode
        if code is not None and code < 0:
            print(f"{child.name} was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)


def end_children() -> list[int]:
    """Kill all processes that descend from this one; returns their ids."""
    children = psutil.Process().children()
    family = psutil.Process().children(recursive=True)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(children, timeout=_EXIT_S)  # a process can only wait for its own children
    return [process.pid for process in family]


def _watch(connection: Connection, clean_up: Callable[[], None], over: threading.Event) -> None:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    while not poll.poll(_POLL_MS):
        if over.is_set():
            return
    clean_up()
    os.killpg(os.getpgrp(), signal.SIGKILL)  # also what was started since
