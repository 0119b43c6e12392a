"""Environments that an engine plays on hosts: actors on other nodes, here objects of the same class."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayActorError

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.base import EnvironmentFailedError, Observation, Turn
from hybridrl.errors import DataError
from hybridrl.workers.environment_hosts import EnvironmentHost, RemoteEnvironments

GUESS = EnvironmentConfig.model_validate({"name": "guess", "max_turns": 4})
ROW = {"prompt": "=", "answer": "6"}


class Handle:
    """Calls a host in this process as Ray's handle of an actor does."""

    def __init__(self, config: EnvironmentConfig) -> None:
        plain: Any = EnvironmentHost
        self.host = plain.__ray_metadata__.modified_class(config)
        self.lost = False

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


class Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    async def remote(self, *args: Any) -> Any:
        if self._handle.lost:
            raise RayActorError()
        return await getattr(self._handle.host, self._name)(*args)


def played(scenario: Any, *, hosts: int = 2, config: EnvironmentConfig = GUESS) -> Any:
    async def run() -> Any:
        handles = [Handle(config) for _ in range(hosts)]
        source = RemoteEnvironments(config, handles)
        try:
            await source.start()
            return await scenario(source, handles)
        finally:
            await source.close()
            await asyncio.gather(*(handle.host.stop() for handle in handles))

    return asyncio.run(run())


async def game(source: RemoteEnvironments, *said: str) -> list[Observation]:
    episode = source.open(ROW)
    try:
        seen = [await episode.reset(3)]
        for text in said:
            seen.append(await episode.step(Turn(text)))
        return seen
    finally:
        await episode.close()


def test_a_game_is_played_on_a_host() -> None:
    async def scenario(source: RemoteEnvironments, handles: list[Handle]) -> Any:
        seen = await game(source, "4", "8", "6")
        await source.close()
        return seen, source.name(ROW), source.max_turns(ROW), source.tools(ROW), handles

    seen, name, turns, tools, handles = played(scenario)
    assert [one.messages[0]["content"] if one.messages else "" for one in seen] == ["", "+", "-", ""]
    assert seen[-1].done and (name, turns, tools) == ("guess", 4, ())
    assert all(not handle.host._episodes for handle in handles)


def test_open_episodes_are_spread_over_the_hosts() -> None:
    async def scenario(source: RemoteEnvironments, handles: list[Handle]) -> list[int]:
        for _ in range(6):
            await source.open(ROW).reset(0)
        return [len(handle.host._episodes) for handle in handles]

    assert played(scenario) == [3, 3]


def test_a_lost_host_costs_its_episodes_and_the_next_ones_go_elsewhere() -> None:
    async def scenario(source: RemoteEnvironments, handles: list[Handle]) -> Any:
        first = source.open(ROW)
        await first.reset(0)
        handles[0].lost = True
        with pytest.raises(EnvironmentFailedError, match="the node that played environments was lost"):
            await first.step(Turn("4"))
        await first.close()
        return await game(source, "6"), await game(source, "6")

    assert all(seen[-1].done for seen in played(scenario))


def test_episodes_of_an_engine_end_when_another_one_takes_its_place() -> None:
    async def scenario(source: RemoteEnvironments, handles: list[Handle]) -> Any:
        left = source.open(ROW)
        await left.reset(0)
        other = RemoteEnvironments(GUESS, handles, engine=1)
        await other.start()
        await other.open(ROW).reset(0)
        await RemoteEnvironments(GUESS, handles).start()
        kept = [key for handle in handles for key in handle.host._episodes]
        with pytest.raises(EnvironmentFailedError, match="started again"):
            await left.step(Turn("4"))
        return kept

    assert played(scenario) == [(1, 1)]


def test_what_an_environment_and_a_row_do_wrong_is_what_it_is_beside_an_engine() -> None:
    several = {"field": "kind", "several": {"game": {"name": "odd_environments:Faulty"}}}

    async def scenario(source: RemoteEnvironments, handles: list[Handle]) -> None:
        with pytest.raises(DataError, match="environment.several has game"):
            source.open({"kind": "x"})
            source.name({"kind": "x"})
        episode = source.open({"kind": "game"})
        await episode.reset(0)
        with pytest.raises(EnvironmentFailedError, match="step raised ValueError: no such move"):
            await episode.step(Turn("raise"))
        await episode.close()

    played(scenario, hosts=1, config=EnvironmentConfig.model_validate(several))
