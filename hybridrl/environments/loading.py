"""Loads the environment and the tools that a config names, in the process that will play them."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl import registry
from hybridrl.config.environment import EnvironmentConfig, OneEnvironment
from hybridrl.config.options import make, taken
from hybridrl.environments.base import ToolSchema
from hybridrl.environments.boxes import open_boxes
from hybridrl.environments.played import Played, tool_names
from hybridrl.environments.threads import called
from hybridrl.environments.tools.base import ToolSource
from hybridrl.environments.tools.calls import CallRules
from hybridrl.environments.tools.functions import check_method
from hybridrl.environments.tools.sources import open_tools
from hybridrl.errors import ConfigError, HybridRLError
from hybridrl.sandbox.places import Sandbox

KINDS = "hybridrl.environments.kinds"

SECTION_KEYS = tuple(EnvironmentConfig.model_fields)
"""Other keys of the section, which are suggested too when an option is mistyped."""


@dataclass(frozen=True, slots=True)
class LoadedEnvironment:
    """An environment with its options and tools, which can play episodes."""

    name: str
    make: Callable[[], Any]
    sources: Sequence[ToolSource]
    schemas: tuple[ToolSchema, ...]
    """Tools that the policy calls in the format of its model. Those that it calls in plain text are not among
    them."""

    rules: CallRules
    ends_at_bad_call: bool

    boxes: Sandbox | None = None
    """Gives each episode a box; None: episodes have none."""

    def episode(self) -> Played:
        return Played(
            self.make,
            self.sources,
            self.rules,
            name=self.name,
            ends_at_bad_call=self.ends_at_bad_call,
            boxes=self.boxes,
        )

    async def close(self) -> None:
        for source in self.sources:
            await source.close()
        if self.boxes is not None:
            await self.boxes.close()


@dataclass(frozen=True, slots=True)
class FoundEnvironment:
    """The class of an environment, and its options. A call makes the object of an episode."""

    kind: type
    options: Mapping[str, Any]

    def __call__(self) -> Any:
        return self.kind(**self.options)


def find_environment(own: OneEnvironment, *, where: str) -> FoundEnvironment:
    """The environment that a config names, with its options checked.

    Raises:
        ConfigError: there is no such environment, it lacks reset or step, or options that it does not take.
        UserCodeError: code from outside raises while it is imported or made.
    """
    key = f"{where}.name"
    plugin = registry.find(KINDS, own.name, where=where, key=key)
    title = f"environment {own.name}"
    if not isinstance(plugin, type):
        what = f"{title} is {plugin!r:.60}, not a class"
        raise ConfigError(
            what, where=where, fix="name a class with the methods reset(row, seed) and step(turn)"
        )
    if missing := [name for name in ("reset", "step") if not callable(getattr(plugin, name, None))]:
        what = f"{title} has no method {' and no method '.join(missing)}"
        raise ConfigError(what, where=where, fix="an environment has reset(row, seed) and step(turn)")
    for name, given in (("reset", ({}, 0)), ("step", (None,))):
        _refuse_signature(plugin, name, given, title, where)
    values = taken(plugin, own.options, title=title, where=where, beside=SECTION_KEYS)
    make(plugin, own.name, own.options, key=key, title=title, where=where, beside=SECTION_KEYS)
    return FoundEnvironment(plugin, values)


async def load(own: OneEnvironment, *, timeout_s: float, where: str) -> LoadedEnvironment:
    """An environment, ready to play.

    Args:
        timeout_s: calls of tools that can be cancelled are, after this time.

    Raises:
        ConfigError, UserCodeError: see find_environment; a tool that cannot be one, or a name of two tools.
        ResourceError: there can be no box.
    """
    found = find_environment(own, where=where)
    if warm_up := getattr(found.kind, "warm_up", None):
        await called(warm_up)
    methods = [getattr(found.kind, name) for name in tool_names(found.kind)]
    schemas = [
        check_method(method, title=f"tool {method.__name__} of {own.name}", where=where) for method in methods
    ]
    text_calls = own.text_calls or getattr(found.kind, "text_calls", {})
    sources = [await open_tools(given, where=f"{where}.tools") for given in own.tools]
    try:
        schemas += [schema for source in sources for schema in source.schemas]
        _refuse_unfit_names(own.name, text_calls, schemas, where)
        boxes = await open_boxes(own, where=where)
    except HybridRLError:
        for source in sources:
            await source.close()
        raise
    rules = CallRules(
        max_calls=own.max_calls,
        max_result_characters=own.max_result_characters,
        timeout_s=timeout_s,
        text_calls=text_calls,
        text_result=own.text_result,
    )
    ends = own.on_bad_call == "end"
    formal = tuple(schema for schema in schemas if schema["function"]["name"] not in text_calls)
    return LoadedEnvironment(own.name, found, sources, formal, rules, ends, boxes)


def _refuse_signature(plugin: type, name: str, given: tuple[Any, ...], title: str, where: str) -> None:
    try:
        inspect.signature(getattr(plugin, name)).bind(None, *given)
    except TypeError as error:
        forms = {"reset": "reset(self, row, seed)", "step": "step(self, turn)"}
        what = f"{title}: its method {name} cannot be called: {error}"
        raise ConfigError(what, where=where, fix=f"write it as {forms[name]}") from error
    except ValueError:  # a builtin without a signature
        pass


def _refuse_unfit_names(
    name: str, text_calls: Mapping[str, str], schemas: Sequence[ToolSchema], where: str
) -> None:
    names = [schema["function"]["name"] for schema in schemas]
    if twice := sorted({tool for tool in names if names.count(tool) > 1}):
        what = f"environment {name} has two tools named {twice[0]}"
        raise ConfigError(what, where=f"{where}.tools", fix="rename one of them")
    for tool, pattern in text_calls.items():
        if tool not in names:
            what = f"environment {name}: text_calls names {tool}, which is no tool of it"
            fix = f"its tools are {', '.join(names)}" if names else "give it tools"
            raise ConfigError(what, where=f"{where}.text_calls", fix=fix)
        try:
            re.compile(pattern)
        except re.error as error:
            what = (
                f"environment {name}: the pattern {pattern!r:.60} of {tool} is no regular expression: {error}"
            )
            raise ConfigError(what, where=f"{where}.text_calls", fix="correct it") from error
