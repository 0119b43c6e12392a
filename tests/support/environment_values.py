"""Plays environments of a config in real processes, for tests."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.base import EnvironmentSource, Observation, Turn
from hybridrl.environments.hosting import open_environments

Result = TypeVar("Result")


def with_environments(
    config: str | Mapping[str, Any], play: Callable[[EnvironmentSource], Awaitable[Result]]
) -> Result:
    """Start the environments of a section, let `play` use them, and close them."""

    async def run() -> Result:
        source = open_environments(EnvironmentConfig.model_validate(config))
        await source.start()
        try:
            return await play(source)
        finally:
            await source.close()

    return asyncio.run(run())


async def episode(
    source: EnvironmentSource, *texts: str, row: Mapping[str, Any] | None = None, seed: int = 0
) -> list[Observation]:
    """The observations of an episode in which the policy says these texts, the opening first."""
    opened = source.open(row or {})
    try:
        seen = [await opened.reset(seed)]
        for text in texts:
            seen.append(await opened.step(Turn(text)))
        return seen
    finally:
        await opened.close()
