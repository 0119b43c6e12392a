"""A box of the sandbox for each episode of an environment whose config has `box`.

environment: {name: "my_worlds:Shell", box: {memory_mb: 1024, time_s: 30}}

The environment's object has it as `self.box` from `reset` to `close`; its methods are async.
"""

from hybridrl.config.environment import TOOLS_ALONE, OneEnvironment
from hybridrl.errors import ConfigError, ResourceError
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.places import Sandbox, open_sandbox


def refuse_idle_box(own: OneEnvironment, *, where: str) -> None:
    """
    Raises:
        ConfigError: the environment cannot use a box.
    """
    if own.box is not None and own.name == TOOLS_ALONE:
        what = f"{where}.box gives a box to an environment, and {where} has tools alone"
        raise ConfigError(what, where=f"{where}.box", fix="the tool {python: {}} runs code in a box")


async def open_boxes(own: OneEnvironment, *, where: str) -> Sandbox | None:
    """The sandbox of a process, which has started; None: the environment asks for no box.

    Raises:
        ConfigError: as refuse_idle_box; or there is no such place.
        ResourceError: there can be no box.
    """
    refuse_idle_box(own, where=where)
    box = own.box
    if box is None:
        return None
    limits = Limits(memory_mb=box.memory_mb, disk_mb=box.disk_mb, processes=box.processes, time_s=box.time_s)
    return await started(
        open_sandbox(box.sandbox, limits, ahead=box.ahead, where=f"{where}.box"), where=where
    )


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
