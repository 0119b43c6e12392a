"""Tools that a policy may call: typed functions, a Python session in a sandbox, tools of MCP servers."""
