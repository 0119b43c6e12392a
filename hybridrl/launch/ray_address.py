"""The addresses of a Ray that runs already and of its job server, checked before anything waits for them."""

import re

from hybridrl.cluster import env
from hybridrl.config.cluster import RayConfig
from hybridrl.errors import ConfigError

_ADDRESS = re.compile(r"auto|(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
_DASHBOARD = re.compile(r"(?:https?|ray)://[^\s/]+(?:/\S*)?")


def address_of(ray: RayConfig) -> str:
    """The address of the Ray to join.

    Raises:
        ConfigError: none is named, or what is named is no address.
    """
    key, variable = "cluster.ray.address", "RAY_ADDRESS"
    found = ray.address or env.ray_address()
    if found is None:
        raise ConfigError("no Ray to join", fix=f"set {key}=host:port, or {variable}")
    if not _ADDRESS.fullmatch(found):
        _refuse(key if ray.address else variable, found, "host:port of a Ray that runs already")
    return found


def dashboard_of(ray: RayConfig) -> str:
    """The address of the job server.

    Raises:
        ConfigError: none is named, or what is named is no address.
    """
    key, variable = "cluster.ray.dashboard", "RAY_API_SERVER_ADDRESS"
    found = ray.dashboard or env.ray_dashboard()
    if found is None:
        raise ConfigError(
            "no Ray dashboard to hand the run to",
            where=key,
            fix=f"set {key}=http://host:8265, or {variable}",
        )
    if not _DASHBOARD.fullmatch(found):
        _refuse(key if ray.dashboard else variable, found, "http://host:port of Ray's job server")
    return found


def _refuse(name: str, found: str, expected: str) -> None:
    raise ConfigError(f"{name} = {found!r} is not {expected}", where=name, fix="correct the address")
