"""A box of the sandbox for each episode of an environment whose config has `box`.

environment: {name: "my_worlds:Shell", box: {memory_mb: 1024, time_s: 30}}

The environment's object has it as `self.box` from `reset` to `close`; its methods are async.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.config.environment import TOOLS_ALONE, OneEnvironment
from hybridrl.config.options import make
from hybridrl.errors import ConfigError, ResourceError
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.places import Sandbox, open_sandbox


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """The value of environment.box; true stands for the defaults."""

    memory_mb: int = 512
    """A box may take this much memory."""

    disk_mb: int = 64
    """The files in it may take this much room."""

    processes: int = 32
    """Processes and threads that may run in it at the same time."""

    time_s: float = 10.0
    """One call may take this long, unless the call says otherwise."""

    ahead: int = 1
    """Boxes that each process starts before they are needed."""

    sandbox: str = "local"
    """Place of the boxes: local is the machine of the environment; or the address of a service."""


def read_box(own: OneEnvironment, *, where: str) -> BoxOptions | None:
    """The boxes that an environment asks for; None: it asks for none.

    Raises:
        ConfigError: options that a box does not take, or an environment that cannot use one.
    """
    if own.box is False:
        return None
    if own.name == TOOLS_ALONE:
        what = f"{where}.box gives a box to an environment, and {where} has tools alone"
        raise ConfigError(what, where=f"{where}.box", fix="the tool {python: {}} runs code in a box")
    given: Mapping[str, Any] = {} if own.box is True else own.box
    return make(BoxOptions, "box", given, title="a box", where=f"{where}.box")


async def open_boxes(own: OneEnvironment, *, where: str) -> Sandbox | None:
    """The sandbox of a process, which has started; None: the environment asks for no box.

    Raises:
        ConfigError: as read_box; or there is no such place.
        ResourceError: there can be no box.
    """
    options = read_box(own, where=where)
    if options is None:
        return None
    limits = Limits(
        memory_mb=options.memory_mb,
        disk_mb=options.disk_mb,
        processes=options.processes,
        time_s=options.time_s,
    )
    sandbox = open_sandbox(options.sandbox, limits, ahead=options.ahead, where=f"{where}.box")
    return await started(sandbox, where=where)


async def started(sandbox: Sandbox, *, where: str) -> Sandbox:
    """The sandbox, which has started.

    Raises:
        ResourceError: there can be no box; the message names the key.
    """
    try:
        await sandbox.start()
    except ResourceError as error:
        raise ResourceError(
            f"{where}.box asks for a box of each episode: {error.what}",
            where=error.where or f"{where}.box",
            fix=f"{error.fix}, or leave {where}.box out",
        ) from error
    return sandbox
