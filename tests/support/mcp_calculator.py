"""An MCP server for tests, over stdio, or over HTTP on the port that its argument names."""

import os
import sys

from mcp.server import MCPServer

server = MCPServer("calculator")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@server.tool()
def fail(text: str) -> str:
    """Fail."""
    raise ValueError(f"failed with {text}")


@server.tool()
def leave() -> str:
    """End the server."""
    os._exit(1)


@server.tool()
def variable(name: str) -> str:
    """A variable of the server."""
    return os.environ.get(name, "unset")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
