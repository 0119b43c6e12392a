"""The environment variables of a run: read here, handed to processes at their start, never written
afterwards."""

import os
import sys
from collections.abc import Mapping


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Variables of a worker process: one compute thread per rank, the user's modules importable, and `extra`.

    Args:
        extra: what the machine's host needs; wins over what stands here.
    """
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(), **extra}


def _python_path() -> str:
    """The folder the command was typed in first, so that `module:function` of a config is found there as
    well."""
    paths = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(p for p in paths if p))


def ray_address() -> str | None:
    """host:port of a running Ray, where the environment names one; Ray's own jobs do."""
    return os.environ.get("RAY_ADDRESS")


def ray_dashboard() -> str | None:
    """Where `ray job submit` hands jobs over."""
    return os.environ.get("RAY_API_SERVER_ADDRESS")


def expected_nodes() -> tuple[str, ...]:
    """Names of the nodes that the job script started Ray on; empty outside such a job."""
    return tuple(os.environ.get("HYBRIDRL_NODES", "").split())


def python_version() -> str:
    return sys.version.split()[0]
