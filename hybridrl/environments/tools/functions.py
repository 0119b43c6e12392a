"""Typed Python functions as tools: the type hints and the docstring are the schema."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model

from hybridrl.environments.base import ToolSchema
from hybridrl.environments.threads import called
from hybridrl.environments.tools.base import Tool, WrongCallError, function_schema
from hybridrl.errors import ConfigError

_WITHOUT_NAME = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
    inspect.Parameter.POSITIONAL_ONLY,
)

_PREFIX = "given_"


def function_tool(function: Callable[..., Any], *, title: str, where: str) -> Tool:
    """A function, or a bound method, as a tool. A plain function is called in a thread, an async one is not.

    Args:
        title: names it in errors, as "tool my_tools:search".

    Raises:
        ConfigError: a parameter has no type hint, or one that JSON cannot have; or it has no docstring.
    """
    arguments = _arguments(function, title, where)
    schema = _schema(function, arguments, title, where)

    async def call(given: Mapping[str, Any]) -> Any:
        return await called(function, **_checked(arguments, given))

    return Tool(schema, call, can_be_cancelled=inspect.iscoroutinefunction(function))


def check_method(method: Callable[..., Any], *, title: str, where: str) -> ToolSchema:
    """The schema of a method of a class that is marked as a tool.

    Raises:
        ConfigError: as function_tool.
    """
    arguments = _arguments(method, title, where, skip=1)
    return _schema(method, arguments, title, where)


def _arguments(function: Callable[..., Any], title: str, where: str, *, skip: int = 0) -> type[BaseModel]:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (ValueError, TypeError) as error:  # it is written in C
        what = f"{title}: Python cannot say what parameters it has"
        raise ConfigError(what, where=where, fix="write a function with type hints that calls it") from error
    if nameless := [p.name for p in parameters if p.kind in _WITHOUT_NAME]:
        what = f"{title}: the policy cannot give {nameless[0]}, which has no name in a call"
        raise ConfigError(what, where=where, fix="give every parameter a name and a type")
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{title}: its type hints cannot be read: {error}", where=where) from error
    if untyped := [p.name for p in parameters if p.name not in hints]:
        what = f"{title}: its parameter {untyped[0]} has no type hint, so the policy cannot know what to give"
        raise ConfigError(what, where=where, fix=f"write its type, as {untyped[0]}: str")
    meanings = _meanings(inspect.getdoc(function) or "")
    # The prefix keeps a parameter that has the name of a method of pydantic's, as `copy`, from hiding it.
    fields: dict[str, Any] = {
        f"{_PREFIX}{p.name}": (
            hints[p.name],
            Field(... if p.default is p.empty else p.default, alias=p.name, description=meanings.get(p.name)),
        )
        for p in parameters
    }
    try:
        return create_model("arguments", __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, NameError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"{title}: a parameter's type cannot be written as JSON: {said}", where=where
        ) from error


def _schema(function: Callable[..., Any], arguments: type[BaseModel], title: str, where: str) -> ToolSchema:
    about, _, _ = (inspect.getdoc(function) or "").partition("\n\n")
    if not about:
        what = f"{title} has no docstring, so the policy cannot know what it does"
        raise ConfigError(what, where=where, fix="write a sentence under its first line")
    parameters = _without_titles(arguments.model_json_schema())
    parameters.setdefault("properties", {})
    return function_schema(function.__name__, re.sub(r"\s+", " ", about), parameters)


def _meanings(doc: str) -> dict[str, str]:
    """What the section Args of a docstring says about parameters, in Google's style."""
    _, _, section = doc.partition("\nArgs:\n")
    section = section.partition("\n\n")[0]
    found = re.findall(r"^\s+(\w+)(?: \([^)]*\))?: (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, dict):
        # A property may be named "title": its value is a schema, not a string.
        return {k: _without_titles(v) for k, v in schema.items() if k != "title" or isinstance(v, dict)}
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema


def _checked(arguments: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        read = arguments.model_validate(given)
    except ValidationError as error:
        raise WrongCallError("; ".join(map(_said, error.errors()))) from error
    return {name.removeprefix(_PREFIX): getattr(read, name) for name in arguments.model_fields}


def _said(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}"
