"""Stand-ins for those parts of SGLang's dependencies that need CUDA, on a machine without it.

`python -m hybridrl.hosts.standins install` writes one .pth file into the environment, which runs hook.py at
the start of every interpreter. So Ray workers and the processes that SGLang spawns get the stand-ins without
any environment variable. With CUDA, or if the real packages are installed, the stand-ins do nothing.
"""

import sys
import sysconfig
from pathlib import Path

from hybridrl.errors import ResourceError
from hybridrl.hosts.standins.hook import CpuKernels, TorchvisionSchemas, activate

_HOOK = Path(__file__).with_name("hook.py").resolve()

# SourceFileLoader caches the compiled hook in __pycache__. If hook.py is missing, the line does nothing.
_LINE = (
    "import os; from _frozen_importlib_external import SourceFileLoader as L; "
    "p = {path!r}; n = 'hybridrl_standins'; g = {{'__name__': n, '__file__': p}}; "
    "os.path.isfile(p) and (exec(L(n, p).get_code(n), g), g['activate']())\n"
)


def pth_path() -> Path:
    """The .pth file that `install` writes into this interpreter's environment."""
    return Path(sysconfig.get_path("purelib")) / "hybridrl_standins.pth"


def install() -> Path:
    """Write the .pth file, and activate the stand-ins in this process as well.

    Raises:
        ResourceError: the environment's site-packages cannot be written to.
    """
    path = pth_path()
    try:
        path.write_text(_LINE.format(path=str(_HOOK)))
    except OSError as error:
        raise ResourceError(
            f"cannot write {path}: {error.strerror}",
            fix="use an environment of your own: python -m venv .venv",
        ) from error
    activate()
    return path


def uninstall() -> bool:
    """Remove the .pth file; running processes keep their stand-ins. Returns whether there was one."""
    path = pth_path()
    present = path.exists()
    path.unlink(missing_ok=True)
    return present


def is_installed() -> bool:
    """Whether every new interpreter of this environment gets the stand-ins of this copy of the project."""
    path = pth_path()
    return path.exists() and path.read_text() == _LINE.format(path=str(_HOOK))


def is_active() -> bool:
    """Whether this process has the stand-ins."""
    present = {type(finder).__name__ for finder in sys.meta_path}
    return {TorchvisionSchemas.__name__, CpuKernels.__name__} <= present
