"""One episode as its process plays it: the environment's own object, and the tools of the episode.

A turn with calls of tools is answered by the tools, any other by the environment.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybridrl.environments.base import Message, Observation, Turn, is_tool
from hybridrl.environments.threads import called
from hybridrl.environments.tools.base import Tool, ToolSession, ToolSource
from hybridrl.environments.tools.calls import Answered, CallRules, answer, calls_in_text
from hybridrl.environments.tools.functions import function_tool
from hybridrl.sandbox.places import Sandbox


class Played:
    """An episode of an environment. Its methods are called one after the other."""

    def __init__(
        self,
        make: Callable[[], Any],
        sources: Sequence[ToolSource],
        rules: CallRules,
        *,
        name: str,
        ends_at_bad_call: bool,
        boxes: Sandbox | None = None,
    ) -> None:
        self._make, self._sources, self._rules, self._name = make, sources, rules, name
        self._ends_at_bad_call = ends_at_bad_call
        self._boxes, self._box = boxes, None
        self._environment: Any = None
        self._sessions: list[ToolSession] = []
        self._tools: dict[str, Tool] = {}

    async def reset(self, row: Mapping[str, Any], seed: int) -> Any:
        """What the environment returned, unchecked."""
        self._environment = await called(self._make)
        if self._boxes is not None:
            self._environment.box = self._box = await self._boxes.take()
        self._sessions = [await source.open() for source in self._sources]
        tools = [
            *own_tools(self._environment, name=self._name),
            *(t for s in self._sessions for t in s.tools),
        ]
        self._tools = {tool.name: tool for tool in tools}
        return await called(self._environment.reset, row, seed)

    async def step(self, turn: Turn) -> Any:
        """What the environment returned, unchecked, or what its tools did."""
        in_text = () if turn.calls else calls_in_text(turn.text, self._rules.text_calls)
        calls = turn.calls or in_text
        if not calls or not self._tools:
            return await called(self._environment.step, turn)
        found = await answer(calls, self._tools, self._rules, plain=bool(in_text))
        return _joined(found, ends_at_fault=self._ends_at_bad_call)

    async def close(self) -> None:
        close = getattr(self._environment, "close", None)
        try:
            if close is not None:
                await called(close)
        finally:
            self._environment = None
            if self._box is not None:
                await self._box.close()
            for session in self._sessions:
                await session.close()


def own_tools(environment: Any, *, name: str) -> list[Tool]:
    """The tools that are methods of an environment."""
    methods = (getattr(environment, attribute) for attribute in tool_names(type(environment)))
    return [
        function_tool(method, title=f"tool {method.__name__} of {name}", where="environment")
        for method in methods
    ]


def tool_names(environment: type) -> list[str]:
    """Names of the methods of a class that are marked as tools, in the order of the class."""
    seen = {key: value for base in reversed(environment.__mro__) for key, value in vars(base).items()}
    return [key for key, value in seen.items() if is_tool(value)]


def _joined(found: Answered, *, ends_at_fault: bool) -> Observation:
    """What the tools of a turn did, as one observation."""
    seen, metrics = found.observations, dict[str, float]()
    for one in seen:
        for name, value in one.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    messages: Sequence[Message] = found.messages
    ends = any(one.done for one in seen) or (ends_at_fault and any(use.fault for use in found.uses))
    return Observation(
        messages=messages,
        reward=sum(one.reward for one in seen),
        done=ends,
        anchor=next((one.anchor for one in seen if one.anchor is not None), None),
        metrics=metrics,
        uses=found.uses,
    )
