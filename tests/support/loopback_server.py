"""A server that a test starts as a process and ends."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(python: str | Path, program: str | Path) -> Iterator[int]:
    """The port of loopback on which a program listens that takes it as its argument."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([python, program, str(port)])
    give_up = time.monotonic() + 60
    while not answers(port) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
