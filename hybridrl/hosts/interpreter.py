"""Runs the project's code in the interpreter of another Python environment."""

import os
import sys
from pathlib import Path

import hybridrl

_PACKAGE = Path(hybridrl.__file__).resolve().parent


def environment_of(python: str, folder: str) -> dict[str, str]:
    """Environment variables with which an interpreter imports this hybridrl and the user's own modules.

    Args:
        python: path of the interpreter.
        folder: a folder of the process, which lasts as long as it does.
    """
    inherited = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if python == sys.executable:
        return dict(os.environ) | {"PYTHONPATH": _joined(str(_PACKAGE.parent), *inherited)}
    # The package alone: beside it may lie all other packages of this environment, of other versions.
    project = Path(folder, "project")
    project.mkdir(exist_ok=True)
    (project / _PACKAGE.name).symlink_to(_PACKAGE)
    users = [path for path in inherited if not Path(path).is_relative_to(sys.prefix)]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PYTHONPATH": _joined(str(project), *users)}


def _joined(*paths: str) -> str:
    return os.pathsep.join(dict.fromkeys(paths))
