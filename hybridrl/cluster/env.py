"""The environment variables of a run. They are read here and passed to processes at their start; nothing
writes them afterwards."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Variables of a worker process: one compute thread, a PYTHONPATH with the user's modules, and `extra`.

    Args:
        extra: variables of the machine; they override the others.
    """
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(), **extra}


def _python_path() -> str:
    """PYTHONPATH with the current folder first, so that `module:function` of a config is found there."""
    paths = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(p for p in paths if p))


@contextlib.contextmanager
def inherited(name: str, value: str) -> Iterator[None]:
    """A context in which processes that are started get a variable."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def ray_address() -> str | None:
    """host:port of a running Ray; None if the environment names none. Ray sets it in its own jobs."""
    return os.environ.get("RAY_ADDRESS")


def ray_dashboard() -> str | None:
    """Address of the job server that `ray job submit` uses; None if the environment names none."""
    return os.environ.get("RAY_API_SERVER_ADDRESS")


def expected_nodes() -> tuple[str, ...]:
    """Names of the nodes on which the Slurm job script started Ray; empty outside such a job."""
    return tuple(os.environ.get("HYBRIDRL_NODES", "").split())


def python_version() -> str:
    return sys.version.split()[0]
