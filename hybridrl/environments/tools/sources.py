"""Reads the items of `environment.tools`, and opens the tools that they name."""

from collections.abc import Mapping
from typing import Any

from hybridrl import registry
from hybridrl.config.options import make
from hybridrl.environments.tools.base import SharedTools, ToolSource
from hybridrl.environments.tools.functions import function_tool
from hybridrl.environments.tools.mcp import McpTools
from hybridrl.environments.tools.python import PythonTool
from hybridrl.errors import ConfigError

_MADE = {"python": PythonTool, "mcp": McpTools}
_FORMS = "module:function, {python: {...}} or {mcp: {...}}"


def read_tool(given: str | Mapping[str, Any], *, where: str) -> str | PythonTool | McpTools:
    """What an item names, without loading code from outside.

    Raises:
        ConfigError: it is no tool, or has options that the tool does not take.
        ResourceError: it needs a package that is not installed.
    """
    if isinstance(given, str) and ":" in given:
        return given
    kind, options = (
        next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else ("", None)
    )
    if kind not in _MADE or not isinstance(options, Mapping | None):
        raise ConfigError(f"{where} has {given!r:.80}, which is no tool", where=where, fix=f"write {_FORMS}")
    return make(_MADE[kind], kind, options or {}, title=f"tool {kind}", where=where)


async def open_tools(given: str | Mapping[str, Any], *, where: str) -> ToolSource:
    """
    Raises:
        ConfigError: as read_tool; or a function cannot be a tool, or a server does not start.
        UserCodeError: code from outside raises while it is imported.
        HybridRLError: this machine has no sandbox.
    """
    tool = read_tool(given, where=where)
    if not isinstance(tool, str):
        return await tool.source(where=where)
    function = registry.find("hybridrl.environments.tools", tool, where=where)
    return SharedTools((function_tool(function, title=f"tool {tool}", where=where),))
