"""Optional packages that an environment or a tool needs."""

import importlib.util

from hybridrl.errors import ResourceError


def require(module: str, requirement: str, *, needed_by: str) -> None:
    """
    Raises:
        ResourceError: the module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ResourceError(
            f"{needed_by} needs the package {module}, which is not installed",
            fix=f'pip install "{requirement}", or requirements/agents.txt',
        )
