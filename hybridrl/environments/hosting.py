"""The environments of a config, opened by the episode runner: one pool of processes for each."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.base import EnvironmentUsage, OpenEpisode, ToolSchema
from hybridrl.environments.pool import EnvironmentPool, Places, total
from hybridrl.errors import DataError
from hybridrl.types import in_row


def open_environments(config: EnvironmentConfig, *, sharers: int = 1) -> "Environments":
    """The environments of a config; `start` starts the first process of each.

    Args:
        sharers: how many of these share the processes of this node.
    """
    return Environments(config, sharers=sharers)


class Environments:
    """See EnvironmentSource. It is made in the event loop that uses it, or before that loop runs."""

    def __init__(self, config: EnvironmentConfig, *, sharers: int = 1) -> None:
        self._config = config
        places = Places(config.processes_per_node, sharers=sharers)
        self._pools = {
            name: EnvironmentPool(name, own, config, places, where=config.place(name))
            for name, own in config.all.items()
        }

    async def start(self) -> None:
        try:
            await asyncio.gather(*(pool.start() for pool in self._pools.values()))
        except BaseException:
            await self.close()
            raise

    def name(self, row: Mapping[str, Any]) -> str:
        return self._pool(row).name

    def tools(self, row: Mapping[str, Any]) -> Sequence[ToolSchema]:
        return self._pool(row).schemas

    def tool_names(self, row: Mapping[str, Any]) -> list[str]:
        """Names of all tools of the row's environment, those that are called in plain text last."""
        pool = self._pool(row)
        return [*(schema["function"]["name"] for schema in pool.schemas), *pool.text_tools]

    @property
    def schemas(self) -> dict[str, tuple[ToolSchema, ...]]:
        """Name of each environment -> the tools that are called in the format of the chat template."""
        return {name: pool.schemas for name, pool in self._pools.items()}

    @property
    def calls_by_template(self) -> bool:
        """Whether some environment has tools that the policy calls in the format of its chat template; known
        once they have started."""
        return any(pool.schemas for pool in self._pools.values())

    def max_turns(self, row: Mapping[str, Any]) -> int:
        return self._pool(row).max_turns

    def open(self, row: Mapping[str, Any]) -> OpenEpisode:
        return self._pool(row).open(row)

    def usage(self) -> EnvironmentUsage:
        return total([pool.usage() for pool in self._pools.values()])

    async def idle(self) -> None:
        """Wait until every episode that is being closed is."""
        await asyncio.gather(*(pool.idle() for pool in self._pools.values()))

    def pids(self) -> list[int]:
        """The processes that live now."""
        return [pid for pool in self._pools.values() for pid in pool.pids]

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    def _pool(self, row: Mapping[str, Any]) -> EnvironmentPool:
        return self._pools[name_of(self._config, row)]


def name_of(config: EnvironmentConfig, row: Mapping[str, Any]) -> str:
    """Name of a row's environment.

    Raises:
        DataError: it names none.
    """
    if config.field is None:
        (name,) = config.all
        return name
    value = in_row(row, config.field)
    if str(value) not in config.several:
        raise DataError(
            f"a row has {config.field} = {value!r:.80}, and environment.several has "
            f"{', '.join(config.several)}",
            where="environment.field",
            fix="add an environment of that name, or correct the data",
        )
    return str(value)
