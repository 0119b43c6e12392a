"""What processes of this machine see, and when they end."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_VARIABLES = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def on_cpu_alone() -> Iterator[None]:
    """A context in which this process and those that it starts see no GPU and use loopback only."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def ends_with_parent(parent: int) -> bool:
    """Let Linux kill this process when its parent ends; returns False if it has ended already.

    Args:
        parent: process id of the parent when it started this process.
    """
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent  # else it ended before prctl
