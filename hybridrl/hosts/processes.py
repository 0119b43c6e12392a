"""The environment of processes that train on the CPU of this machine, even if it has GPUs."""

import contextlib
import os
from collections.abc import Iterator

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
