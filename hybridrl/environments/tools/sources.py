"""Opens the tools that an item of `environment.tools` names."""

from collections.abc import Mapping
from typing import Any

from hybridrl import registry
from hybridrl.environments.tools.base import SharedTools, ToolSource
from hybridrl.environments.tools.functions import function_tool
from hybridrl.errors import ConfigError

_FORMS = "module:function, {python: {...}} or {mcp: {...}}"


async def open_tools(given: str | Mapping[str, Any], *, where: str) -> ToolSource:
    """
    Raises:
        ConfigError: it is no tool, or a server cannot be started.
        UserCodeError: code from outside raises while it is imported.
    """
    if isinstance(given, str):
        return _function(given, where)
    raise ConfigError(f"{where} has {given!r:.80}, which is no tool", where=where, fix=f"write {_FORMS}")


def _function(name: str, where: str) -> ToolSource:
    if ":" not in name:
        raise ConfigError(f"{where} has {name!r:.80}, which is no tool", where=where, fix=f"write {_FORMS}")
    function = registry.find("hybridrl.environments.tools", name, where=where)
    return SharedTools((function_tool(function, title=f"tool {name}", where=where),))
