"""Environments and tools of a run, loaded and tried before any worker starts."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.load import LoadedConfig
from hybridrl.data.tables import Table
from hybridrl.environments.base import EnvironmentFailedError, EnvironmentSource
from hybridrl.environments.boxes import refuse_idle_box
from hybridrl.environments.hosting import Environments, open_environments
from hybridrl.environments.loading import find_environment
from hybridrl.environments.tools.sources import read_tool
from hybridrl.errors import DataError, HybridRLError, UserCodeError
from hybridrl.hosts.variables import child_environment
from hybridrl.types import in_row
from hybridrl.wording import counted


def unfit_environments(config: EnvironmentConfig) -> Iterator[HybridRLError]:
    """Errors that can be known without loading code from outside, which a process that can be killed does."""
    for name, own in config.all.items():
        where = config.place(name)
        trials: list[Callable[[], object]] = [
            partial(read_tool, given, where=f"{where}.tools") for given in own.tools
        ]
        trials.append(partial(refuse_idle_box, own, where=where))
        if ":" not in own.name:
            trials.append(partial(find_environment, own, where=where))
        for trial in trials:
            try:
                trial()
            except HybridRLError as error:
                yield error


@dataclass(frozen=True, slots=True)
class TriedEnvironments:
    """What is known of the environments of a config once each has begun an episode."""

    described: str = ""
    """One line about environments and tools; "" if the config has none."""

    calls_by_template: bool = False
    """Whether the policy calls some tool in the format of its chat template."""


def try_environments(loaded: LoadedConfig, tables: Sequence[Table]) -> TriedEnvironments:
    """Start a process of every environment, and begin an episode of each in it.

    Args:
        tables: rows of the data; none if they are not here, and then no episode is begun.

    Raises:
        ConfigError: an environment or a tool cannot be loaded, or a variable that is listed is not set.
        DataError: a row names no environment.
        UserCodeError: an environment cannot begin an episode.
    """
    config = loaded.config.environment
    if config is None:
        return TriedEnvironments()
    variables = "environment.variables"
    child_environment(config.variables, key=variables, where=loaded.where(variables))
    rows = rows_by_environment(config, tables, most=1, where=loaded.where("environment.field"))
    with loaded.located():
        return asyncio.run(_tried(config, {name: row for name, (row,) in rows.items()}))


async def _tried(config: EnvironmentConfig, rows: Mapping[str, Mapping[str, Any]]) -> TriedEnvironments:
    source = open_environments(config)
    try:
        await source.start()
        for name, row in rows.items():
            await _begin(source, row, where=config.place(name))
        described = "; ".join(f"{name}{_tools(source, row)}" for name, row in rows.items())
        return TriedEnvironments(described, source.calls_by_template)
    finally:
        await source.close()


def _tools(source: Environments, row: Mapping[str, Any]) -> str:
    names = source.tool_names(row)
    return f" with {counted(len(names), 'tool')}: {', '.join(names)}" if names else ""


async def _begin(source: EnvironmentSource, row: Mapping[str, Any], *, where: str) -> None:
    episode = source.open(row)
    try:
        await episode.reset(0)
    except EnvironmentFailedError as error:
        raise UserCodeError(error.what, where=error.where or where, fix=error.fix or "correct it") from error
    finally:
        await episode.close()


def rows_by_environment(
    config: EnvironmentConfig, tables: Sequence[Table], *, most: int, where: str
) -> dict[str, list[Mapping[str, Any]]]:
    """At most so many rows of each environment that the data have one for.

    Raises:
        DataError: a row names an environment that there is none of.
    """
    if config.field is None:
        (name,) = config.all
        return {name: [tables[0][i] for i in range(min(most, len(tables[0])))]} if tables else {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for table in tables:
        for index, value in enumerate(_values(table, config.field)):
            if str(value) not in config.several:
                raise DataError(
                    f"{table.place(index)} has {config.field} = {value!r:.60}, and environment.several has "
                    f"{', '.join(config.several)}",
                    where=where,
                    fix="add an environment of that name, or correct the row",
                )
            rows = found.setdefault(str(value), [])
            if len(rows) < most:
                rows.append(table[index])
    return found


def _values(table: Table, field: str) -> Iterator[Any]:
    if field in table[0]:
        return table.column(field)
    return (in_row(table[index], field) for index in range(len(table)))
