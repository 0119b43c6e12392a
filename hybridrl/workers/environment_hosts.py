"""Environments on nodes of their own: an actor on each, and what engines open episodes there with.

    engine's worker --reset, step, close of an episode--> host --> process of the environment

The host has the deadlines of environments. A host that is lost loses its episodes, which are played again on
another one.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.base import (
    EnvironmentFailedError,
    EnvironmentUsage,
    Observation,
    OpenEpisode,
    ToolSchema,
    Turn,
)
from hybridrl.environments.hosting import name_of, open_environments
from hybridrl.hosts import stacks

_MOST_CALLS = 1_000_000
"""Concurrent calls of one host: each episode waits in one."""

_RESTARTS = 3
"""How often Ray starts the actor of a host again."""

EpisodeKey = tuple[int, int]
"""(number of the engine, number of the episode among its own)."""


# Ray's type stubs lack this option for classes.
@ray.remote(max_restarts=_RESTARTS, max_concurrency=_MOST_CALLS)  # pyright: ignore[reportCallIssue, reportArgumentType]
class EnvironmentHost:
    """The environments of one node, for all engines."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._episodes: dict[EpisodeKey, OpenEpisode] = {}
        self._starting = asyncio.Lock()
        self._environments: Any = None

    def pid(self) -> int:
        return stacks.answer()

    async def start(self, engine: int) -> dict[str, tuple[ToolSchema, ...]]:
        """Begin to serve an engine; episodes that it left open, before it was replaced, end.

        Returns:
            Name of each environment -> the tools that are called in the format of the chat template.

        Raises:
            HybridRLError: the environments cannot be started.
        """
        for key in [key for key in self._episodes if key[0] == engine]:
            await self.close(key)
        return (await self._started()).schemas

    async def reset(self, key: EpisodeKey, row: Mapping[str, Any], seed: int) -> Observation:
        environments = await self._started()
        episode = self._episodes[key] = environments.open(row)
        return await episode.reset(seed)

    async def step(self, key: EpisodeKey, turn: Turn) -> Observation:
        if key not in self._episodes:
            raise EnvironmentFailedError("the node that played the environment was started again")
        return await self._episodes[key].step(turn)

    async def close(self, key: EpisodeKey) -> None:
        episode = self._episodes.pop(key, None)
        if episode is not None:
            await episode.close()

    async def stop(self) -> None:
        """End all processes."""
        if self._environments is not None:
            await self._environments.close()

    async def _started(self) -> Any:
        async with self._starting:  # this actor may have been started again
            if self._environments is None:
                environments = open_environments(self._config)
                await environments.start()
                self._environments = environments
            return self._environments


class RemoteEnvironments:
    """Implements EnvironmentSource over hosts. An episode goes to the one with the fewest of this engine."""

    def __init__(self, config: EnvironmentConfig, hosts: Sequence[Any], *, engine: int = 0) -> None:
        """
        Args:
            hosts: handles of EnvironmentHost actors.
            engine: number of the engine whose episodes these are.
        """
        self._config, self._hosts, self._engine = config, hosts, engine
        self._all, self._schemas = config.all, dict[str, Sequence[ToolSchema]]()
        self._number = self._closed = 0
        self._open, self._lost = [0] * len(hosts), set[int]()
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        answers = await asyncio.gather(*(answer_of(host.start.remote(self._engine)) for host in self._hosts))
        self._schemas = answers[0]

    def name(self, row: Mapping[str, Any]) -> str:
        return name_of(self._config, row)

    def tools(self, row: Mapping[str, Any]) -> Sequence[ToolSchema]:
        return self._schemas[self.name(row)]

    @property
    def calls_by_template(self) -> bool:
        """Whether the policy calls some tool in the format of its chat template."""
        return any(self._schemas.values())

    def max_turns(self, row: Mapping[str, Any]) -> int:
        return self._all[self.name(row)].max_turns

    def open(self, row: Mapping[str, Any]) -> OpenEpisode:
        self._number += 1
        where = min(range(len(self._hosts)), key=lambda i: (i in self._lost, self._open[i]))
        return _RemoteEpisode(self, where, (self._engine, self._number), row)

    def usage(self) -> EnvironmentUsage:
        """Episodes since the last call; what their processes did is known to the hosts."""
        found = EnvironmentUsage(episodes=self._number, closed=self._closed)
        self._closed = 0
        return found

    async def close(self) -> None:
        """Wait for episodes that are being closed; the hosts end when the run does."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def ask(self, host: int, method: str, *args: Any) -> Any:
        """
        Raises:
            EnvironmentFailedError: the environment failed, or its node was lost.
        """
        try:
            found = await answer_of(getattr(self._hosts[host], method).remote(*args))
        except RayActorError as error:
            self._lost.add(host)
            what = f"the node that played environments was lost: {str(error).splitlines()[0]:.200}"
            raise EnvironmentFailedError(what) from error
        self._lost.discard(host)
        return found

    def begun(self, host: int) -> None:
        self._open[host] += 1

    def ended(self, host: int, key: EpisodeKey) -> None:
        """Close an episode, while its runner goes on."""
        self._open[host] -= 1
        self._closed += 1
        task = asyncio.create_task(self._end(host, key))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, host: int, key: EpisodeKey) -> None:
        try:
            await self.ask(host, "close", key)
        except EnvironmentFailedError:
            pass  # its host is gone, and it with it


class _RemoteEpisode:
    """Implements OpenEpisode on a host."""

    def __init__(
        self, source: RemoteEnvironments, host: int, key: EpisodeKey, row: Mapping[str, Any]
    ) -> None:
        self._source, self._host, self._key, self._row = source, host, key, row
        self._is_open = False

    async def reset(self, seed: int) -> Observation:
        self._is_open = True
        self._source.begun(self._host)
        return await self._source.ask(self._host, "reset", self._key, dict(self._row), seed)

    async def step(self, turn: Turn) -> Observation:
        return await self._source.ask(self._host, "step", self._key, turn)

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._source.ended(self._host, self._key)


async def answer_of(call: Awaitable[Any]) -> Any:
    """What an actor answers; its own error is raised as it was, without Ray's wrapper."""
    try:
        return await call
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
