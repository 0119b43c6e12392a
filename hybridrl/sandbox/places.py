"""The places that boxes come from."""

from typing import Protocol

from hybridrl.errors import ConfigError, ResourceError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.support import inspect


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
        place: "local".
        ahead: boxes that are started before they are asked for.
        where: the config place, named in errors.

    Raises:
        ConfigError: no such place.
    """
    if place != "local":
        raise ConfigError(
            f"sandbox = {place!r}: boxes are made on this machine alone",
            where=where,
            fix="set sandbox: local",
        )
    return LocalSandbox(limits, ahead=ahead)


async def check_place(place: str, *, where: str = "") -> None:
    """Refuse a place that can give no box.

    Raises:
        ConfigError: no such place.
        ResourceError: no kind of box holds on this machine.
    """
    open_sandbox(place, Limits(), where=where)
    support = await inspect()
    if support.kind is None:
        raise ResourceError(f"no box can be made here: {support.why}", where=where, fix=support.fix)
