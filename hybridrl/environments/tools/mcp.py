"""The tools of an MCP server, over stdio or HTTP; each process of environments has a connection of its own.

{mcp: {command: [python, server.py]}} starts the server; {mcp: {url: "http://127.0.0.1:8000/mcp"}} connects to
one that runs. A connection that is lost ends the episodes that use it, which are played again, and is opened
again for the next ones.

Waits: a call waits for its answer, and is cancelled by who calls it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import ToolSchema
from hybridrl.environments.packages import require
from hybridrl.environments.tools.base import (
    LostToolError,
    SharedTools,
    Tool,
    ToolFaultError,
    function_schema,
)
from hybridrl.errors import ConfigError
from hybridrl.hosts.variables import all_variables


@dataclass(frozen=True, kw_only=True)
class McpTools:
    """An item {mcp: {...}} of environment.tools."""

    command: tuple[str, ...] = ()
    """Program and arguments of a server that speaks over stdin and stdout."""

    url: str | None = None
    """Address of a server that speaks streamable HTTP."""

    env: dict[str, str] | None = None
    """Further variables of the server, beside those that the environment sees."""

    headers: dict[str, str] | None = None
    """HTTP headers of every request, as an authorization."""

    only: tuple[str, ...] = ()
    """Names of the tools to offer; none: all of them."""

    start_timeout_s: float = 30.0
    """The server may take this long to start and to list its tools."""

    def __post_init__(self) -> None:
        if bool(self.command) == (self.url is not None):
            raise ValueError("give either command, to start a server, or url, to connect to one")
        if self.headers and self.command:
            raise ValueError("headers go with url, env with command")
        if self.env and self.url:
            raise ValueError("env goes with command, headers with url")
        require("mcp", "mcp>=2,<3", needed_by="a tool of an MCP server")

    @property
    def server(self) -> str:
        """The server in messages."""
        return self.url or " ".join(self.command)

    async def source(self, *, where: str) -> "McpSource":
        """
        Raises:
            ConfigError: the server does not start, or has no tool of a name in `only`.
        """
        source = McpSource(self)
        try:
            await source.connect()
        except LostToolError as error:
            raise ConfigError(
                f"the MCP server {self.server} did not start: {error}",
                where=where,
                fix="its own message is above" if self.command else "start it, and check the address",
            ) from error
        names = [schema["function"]["name"] for schema in source.schemas]
        if missing := [name for name in self.only if name not in names]:
            await source.close()
            what = f"the MCP server {self.server} has no tool {missing[0]!r}"
            raise ConfigError(what, where=where, fix=f"its tools are {', '.join(names)}")
        return source


class McpSource:
    """A connection to a server."""

    def __init__(self, options: McpTools) -> None:
        self._options = options
        self._schemas: tuple[ToolSchema, ...] = ()
        self._client: Any = None
        self._owner: asyncio.Task[None] | None = None
        self._connecting, self._stop = asyncio.Lock(), asyncio.Event()

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        only = self._options.only
        return tuple(s for s in self._schemas if not only or s["function"]["name"] in only)

    async def connect(self) -> None:
        """
        Raises:
            LostToolError: the server does not start, or does not answer.
        """
        ready = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        # The client's tasks belong to the task that opens and closes it.
        self._owner = asyncio.create_task(self._own(ready))
        await ready

    async def open(self) -> SharedTools:
        async with self._connecting:
            if self._stop.is_set() or self._owner is None or self._owner.done():
                await self._ended()
                await self.connect()
        return SharedTools(tuple(Tool(schema, self._caller(schema), True) for schema in self.schemas))

    async def close(self) -> None:
        self._stop.set()
        await self._ended()

    async def _ended(self) -> None:
        if self._owner is not None:
            await self._owner

    async def _own(self, ready: asyncio.Future[None]) -> None:
        options = self._options
        try:
            async with contextlib.AsyncExitStack() as opened:
                async with asyncio.timeout(options.start_timeout_s):
                    self._client = await opened.enter_async_context(_connected(options))
                    self._schemas = tuple([schema async for schema in _listed(self._client)])
                ready.set_result(None)
                await self._stop.wait()
        except TimeoutError:
            _fail(ready, f"it did not answer within {options.start_timeout_s:g} s")
        except Exception as error:  # handed to who waits
            _fail(ready, _said(error))
        finally:
            self._client = None

    def _caller(self, schema: ToolSchema) -> Any:
        name = schema["function"]["name"]

        async def call(arguments: Mapping[str, Any]) -> str:
            return await self._call(name, arguments)

        return call

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        if self._client is None:
            raise LostToolError(f"the MCP server {self._options.server} is gone")
        try:
            result = await self._client.call_tool(name, dict(arguments))
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                self._stop.set()
                raise LostToolError(f"the MCP server {self._options.server} is gone: {error}") from error
            raise ToolFaultError(str(error)) from error
        text = "\n".join(map(_text, result.content))
        if not result.content and result.structured_content is not None:
            text = json.dumps(result.structured_content, ensure_ascii=False)
        if result.is_error:
            raise ToolFaultError(text)
        return text


@contextlib.asynccontextmanager
async def _connected(options: McpTools) -> AsyncIterator[Any]:
    from mcp import Client, StdioServerParameters

    if options.url is None:
        program, *arguments = options.command
        variables = all_variables() | (options.env or {})
        async with Client(StdioServerParameters(command=program, args=arguments, env=variables)) as client:
            yield client
    else:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers=options.headers, timeout=None) as http:
            async with Client(streamable_http_client(options.url, http_client=http)) as client:
                yield client


async def _listed(client: Any) -> AsyncIterator[ToolSchema]:
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            yield function_schema(tool.name, tool.description or "", tool.input_schema)
        cursor = page.next_cursor
        if cursor is None:
            return


def _text(block: Any) -> str:
    return block.text if block.type == "text" else f"[{block.type}]"


def _fail(ready: asyncio.Future[None], why: str) -> None:
    if not ready.done():
        ready.set_exception(LostToolError(why))


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
