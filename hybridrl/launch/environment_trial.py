"""Tries the environments of a config on its data, without a model: `hybridrl environment check`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.load import LoadedConfig
from hybridrl.data.source import open_rows
from hybridrl.environments.base import Phase
from hybridrl.environments.hosting import open_environments
from hybridrl.environments.trial import try_environment
from hybridrl.errors import ConfigError, refuse
from hybridrl.findings import Finding
from hybridrl.launch.environment_setup import rows_by_environment, unfit_environments
from hybridrl.wording import counted

ROWS = 64
"""Rows of each environment that begin episodes."""


def trial(loaded: LoadedConfig[Any], *, episodes: int) -> Iterator[tuple[str, Finding]]:
    """What the answers of every kind showed, with the name of the environment.

    Args:
        episodes: of each environment.

    Raises:
        ConfigError, DataError, UserCodeError: data and environments cannot be tried at all.
    """
    cfg = loaded.config
    if cfg.environment is None:
        raise ConfigError(
            f"{loaded.file} has no environment", where=str(loaded.file), fix="add the section environment"
        )
    refuse([loaded.locate(error) for error in unfit_environments(cfg.environment)])
    with loaded.located():
        source, seed, place = cfg.data.train, cfg.run.seed, loaded.where("data.train")
        _, table = open_rows(source, split="train", seed=seed, where=place)
        rows = rows_by_environment(
            cfg.environment, [table], most=ROWS, where=loaded.where("environment.field")
        )
        with asyncio.Runner() as runner:
            findings = _found(cfg.environment, rows, episodes)
            while (finding := runner.run(anext(findings, None))) is not None:
                yield finding


async def _found(
    config: EnvironmentConfig, rows: Mapping[str, list[Mapping[str, Any]]], episodes: int
) -> AsyncIterator[tuple[str, Finding]]:
    source = open_environments(config)
    deadlines: dict[Phase, float] = {"reset": config.reset_timeout_s, "step": config.step_timeout_s}
    try:
        await source.start()
        for name, own in rows.items():
            tools = source.tool_names(own[0])
            said = f"{counted(len(tools), 'tool')}: {', '.join(tools)}" if tools else "no tools"
            yield name, Finding("ok", "start", said)
            async for finding in try_environment(source, own, episodes=episodes, deadlines=deadlines):
                yield name, finding
    finally:
        await source.close()
