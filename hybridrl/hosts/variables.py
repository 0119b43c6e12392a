"""The variables of the shell that processes of a user's code see."""

import os
from collections.abc import Sequence

BASE_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Variables that every such process sees, where they are set. OMP_NUM_THREADS is 1 unless it is set."""


def child_environment(listed: Sequence[str]) -> dict[str, str]:
    """The variables of a process that sees the base and those that the config lists, and no others."""
    own = {name: os.environ[name] for name in (*BASE_VARIABLES, *listed) if name in os.environ}
    return own | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def all_variables() -> dict[str, str]:
    """The variables of this process."""
    return dict(os.environ)


def not_set(names: Sequence[str]) -> list[str]:
    """The names of which this process has no variable."""
    return [name for name in names if name not in os.environ]
