"""Tools that a policy may call: typed functions, and the tools of MCP servers."""
