"""The environment variables of a process that runs code of others: a documented base, and those that a config
lists."""

import os
import sys
from collections.abc import Iterable

from hybridrl.errors import ConfigError

BASE = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CUDA_VISIBLE_DEVICES",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "PYTHONHASHSEED",
    "PYTHONUTF8",
    "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)
"""Variables that every such process gets, where they are set: where files and programs are, language, the
GPUs that it may see, number of threads, and the folders of Hugging Face. None of them holds a secret."""


def is_withheld(name: str, names: Iterable[str]) -> bool:
    """Whether a variable is set here, and child_environment(names) leaves it out."""
    return name in os.environ and name not in BASE and name not in names


def child_environment(names: Iterable[str], *, key: str, where: str = "") -> dict[str, str]:
    """The variables of BASE that are set, and those with the names. PATH begins with the folder of this
    interpreter, so that `python` is the one that has the project's packages.

    Args:
        key: config key that lists the names.
        where: its place in the config, named in errors.

    Raises:
        ConfigError: a name is not set here.
    """
    for name in names:
        if name not in os.environ:
            raise ConfigError(
                f"{key} lists {name}, which is not set on this machine",
                where=where,
                fix=f"export {name}, or take it out of {key}",
            )
    found = {name: os.environ[name] for name in (*BASE, *names) if name in os.environ}
    own, path = os.path.dirname(sys.executable), found.get("PATH", os.defpath)
    return found | {"PATH": path if path.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{path}"}


def all_variables() -> dict[str, str]:
    """The variables of this process."""
    return dict(os.environ)
