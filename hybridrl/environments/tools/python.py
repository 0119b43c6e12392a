"""A Python session in a sandbox as a tool: what a call defines is there in the next one.

{python: {timeout_s: 5, memory_mb: 512}} gives every episode a box of its own at its first call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import ToolSchema
from hybridrl.environments.tools.base import LostToolError, Tool, WrongCallError, function_schema
from hybridrl.errors import SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.places import Sandbox, open_sandbox

_SCHEMA = function_schema(
    "python",
    "Run Python code in a session that keeps its variables; the result is what it prints, and the value of "
    "the last expression.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the code."}},
        "required": ["code"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, kw_only=True)
class PythonTool:
    """An item {python: {...}} of environment.tools."""

    timeout_s: float = 5.0
    """A call may take this long."""

    memory_mb: int = 512
    """A session may take this much memory."""

    ahead: int = 1
    """Boxes that each process starts before they are needed."""

    sandbox: str = "local"
    """Place of the boxes: local is the machine of the environment; or the address of a service."""

    async def source(self, *, where: str) -> "PythonSource":
        """
        Raises:
            HybridRLError: there is no such place, or no box can be made there.
        """
        limits = Limits(memory_mb=self.memory_mb, time_s=self.timeout_s)
        sandbox = open_sandbox(self.sandbox, limits, ahead=self.ahead, where=where)
        await sandbox.start()
        return PythonSource(self, sandbox)


class PythonSource:
    """The sandbox of a process."""

    schemas: tuple[ToolSchema, ...] = (_SCHEMA,)

    def __init__(self, options: PythonTool, sandbox: Sandbox) -> None:
        self._options, self._sandbox = options, sandbox

    async def open(self) -> "PythonSession":
        return PythonSession(self._options, self._sandbox)

    async def close(self) -> None:
        await self._sandbox.close()


class PythonSession:
    """The session of an episode; its box is taken at the first call."""

    def __init__(self, options: PythonTool, sandbox: Sandbox) -> None:
        self._options, self._sandbox = options, sandbox
        self._box: Box | None = None
        self.tools = (Tool(_SCHEMA, self._call),)

    async def close(self) -> None:
        if self._box is not None:
            await self._box.close()

    async def _call(self, arguments: Mapping[str, Any]) -> str:
        code = arguments.get("code")
        if not isinstance(code, str) or len(arguments) != 1:
            raise WrongCallError(f"{sorted(arguments)}, not code, a string")
        try:
            self._box = self._box or await self._sandbox.take()
            done = await self._box.python(code, time_s=self._options.timeout_s)
        except SandboxError as error:
            raise LostToolError(str(error)) from error
        return done.text
