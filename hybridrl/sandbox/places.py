"""The places that boxes come from."""

from typing import Protocol

from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.remote import RemoteSandbox


class Sandbox(Protocol):
    """Gives boxes. Whoever has another source of them writes this class."""

    async def start(self) -> None:
        """Begin to start boxes.

        Raises:
            ResourceError: there can be none.
        """
        ...

    async def take(self) -> Box:
        """A box that is up, for one episode or one answer; whoever takes it closes it.

        Raises:
            SandboxError: it could not be started.
        """
        ...

    async def close(self) -> None:
        """End all boxes."""
        ...


def open_sandbox(place: str, limits: Limits, *, ahead: int = 2, where: str = "") -> Sandbox:
    """The sandbox at a place.

    Args:
        place: "local", or the URL of a service (remote.py).
        ahead: boxes that are started before they are asked for.
        where: the config place, named in errors.

    Raises:
        ConfigError: no such place.
    """
    if place == "local":
        return LocalSandbox(limits, ahead=ahead)
    return RemoteSandbox(place, limits, where=where)


async def check_place(place: str, *, where: str = "") -> None:
    """Refuse a place that can give no box.

    Raises:
        ConfigError: no such place.
        ResourceError: no kind of box holds on this machine, or the service does not serve.
    """
    sandbox = open_sandbox(place, Limits(), ahead=1, where=where)
    await sandbox.start()
    await sandbox.close()
