"""The interpreter of another Python environment: what it has, and how it runs the project's code."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import hybridrl
from hybridrl.errors import ResourceError

_PACKAGE = Path(hybridrl.__file__).resolve().parent


_TIMEOUT_S = 60.0

_ASK = """
import importlib.metadata, json, sys
packages = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
print(json.dumps([list(sys.version_info[:3]), packages]))
"""


class Interpreter(NamedTuple):
    version: tuple[int, int, int]
    packages: Mapping[str, str]
    """Versions by the normalised name of the distribution."""


@cache
def inspect(python: str) -> Interpreter:
    """What an interpreter's environment has; it takes a tenth of a second.

    Raises:
        ResourceError: there is no such interpreter, or it does not run.
    """
    try:
        # -I: without PYTHONPATH, which would show packages of this environment.
        done = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        version, packages = json.loads(done.stdout)
    except FileNotFoundError:
        raise ResourceError(f"there is no interpreter {python}") from None
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ResourceError(f"{python} is no Python interpreter that runs here: {error}") from None
    return Interpreter((version[0], version[1], version[2]), packages)


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
