"""What a tool is: a schema, and a call that returns a result or says what the policy did wrong."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hybridrl.environments.base import ToolSchema


class WrongCallError(Exception):
    """The policy called a tool wrongly; the message is text for the policy."""


class ToolFaultError(Exception):
    """A tool failed; the message is text for the policy."""


class LostToolError(Exception):
    """What a tool runs on is gone, as its server: the environment has failed, not the policy."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of one episode, or of all episodes of a process."""

    schema: ToolSchema
    call: Callable[[Mapping[str, Any]], Awaitable[Any]]
    """Called with the arguments. It returns a result, a string or anything that JSON can write, or an
    Observation, whose reward, metrics and end count. It raises WrongCallError for wrong arguments; every
    other error is told to the policy as one of the tool."""

    can_be_cancelled: bool = False
    """Whether a call that takes too long ends when it is cancelled."""

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


class ToolSession(Protocol):
    """Tools with what they keep for one episode."""

    @property
    def tools(self) -> tuple[Tool, ...]: ...

    async def close(self) -> None: ...


class ToolSource(Protocol):
    """An item of environment.tools, opened once in each process."""

    @property
    def schemas(self) -> tuple[ToolSchema, ...]: ...

    async def open(self) -> ToolSession:
        """The tools for an episode. It takes no time: what has to be started is started at the first call."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SharedTools:
    """Tools without a state of an episode; a source and its session in one."""

    tools: tuple[Tool, ...]

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return tuple(tool.schema for tool in self.tools)

    async def open(self) -> "SharedTools":
        return self

    async def close(self) -> None:
        pass


def function_schema(name: str, description: str, parameters: Mapping[str, Any]) -> ToolSchema:
    """A tool in OpenAI's form."""
    body = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": body}
