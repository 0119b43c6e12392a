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


def python_version() -> str:
    return sys.version.split()[0]
