"""Options of a plug-in, checked against its signature before it is called for the first time."""

import difflib
import inspect
import json
import re
import types
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hybridrl.config.strict_yaml import inline
from hybridrl.errors import ConfigError
from hybridrl.outside import user_code


def make(
    plugin: type,
    name: str,
    options: Mapping[str, Any],
    *,
    title: str,
    where: str,
    key: str = "",
    **beside: Any,
) -> Any:
    """A plug-in that is a class, made with its options.

    Args:
        name: the plug-in's name in the config.
        key: the config key that names it; "" where `where` is the key.
        title, where, beside: see `taken`.

    Raises:
        ConfigError: as `taken`; or the options contradict each other.
        UserCodeError: code from outside raises.
    """
    values = taken(plugin, options, title=title, where=where, **beside)
    with user_code(name, key=key or where, where=where, plugin=plugin):
        try:
            return plugin(**values)
        except (ValueError, re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{title}: {error}", where=where) from error


def taken(
    plugin: Callable,
    options: Mapping[str, Any],
    *,
    title: str,
    where: str,
    are_keys: bool = False,
    positional: int | None = 0,
    supplied: Collection[str] = (),
    beside: Collection[str] = (),
) -> dict[str, Any]:
    """Refuse an unknown option, a missing one, and a value of another type than the plug-in declares.

    Args:
        title: name of the plug-in in an error, as "reward regex".
        where: the config place of its options.
        are_keys: `where` is a config key, and each option a key below it.
        positional: how many leading parameters the caller fills, which are no options; None: all.
        supplied: parameters that the caller fills by name.
        beside: other keys of the same config section, which a mistyped option may mean too.

    Returns:
        The options as the plug-in takes them: a list of the config is a tuple where it declares one.

    Raises:
        ConfigError: names the nearest option.
    """

    def place(option: str) -> str:
        return f"{where}.{option}" if are_keys else where

    parameters = [p for p in _parameters(plugin, positional) if p.name not in supplied]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for option in options:
        if option not in known and not takes_any:
            what = f"{title} has no option {option!r}"
            raise ConfigError(what, where=place(option), fix=_nearest(option, known, beside))
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise ConfigError(f"{title} needs the option {missing[0]}", where=where, fix=f"add {missing[0]}: ...")
    for option, value in options.items():
        if _has_nan(value):
            what = f"{title}: {option} = {value!r} is not a number that can be computed with"
            raise ConfigError(what, where=place(option), fix=f"give {option} a number")
    hints = _hints(plugin)
    return {
        option: _typed(option, value, hints[option], title, place(option))
        if option in known and option in hints
        else value
        for option, value in options.items()
    }


def _has_nan(value: Any) -> bool:
    """Whether a value is NaN, or has one inside: it compares as false with every bound."""
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    return any(map(_has_nan, value)) if isinstance(value, (list, tuple)) else value != value


def _parameters(plugin: Callable, positional: int | None) -> list[inspect.Parameter]:
    if positional is None:
        return []
    try:
        return list(inspect.signature(plugin).parameters.values())[positional:]
    except ValueError:  # a builtin without a signature takes no options
        return []


def _nearest(option: str, known: Collection[str], beside: Collection[str]) -> str:
    near = difflib.get_close_matches(option, [*known, *beside], n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"its options are {', '.join(known)}" if known else "it has none"


def _hints(plugin: Callable) -> dict[str, Any]:
    if isinstance(plugin, type):
        plugin = plugin.__init__
    elif not inspect.isroutine(plugin):
        plugin = type(plugin).__call__
    try:
        return get_type_hints(plugin)
    except (NameError, TypeError):  # annotations that only its author can resolve check nothing
        return {}


def _typed(option: str, value: Any, hint: Any, title: str, where: str) -> Any:
    # Imported here: it takes 0.1 s, for which a plug-in without options need not wait.
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        # Strict JSON rules: an int is a float, a list is a tuple, but a string or a bool is no number.
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except PydanticSchemaGenerationError:  # a class of the author's own
        return value
    except (ValidationError, TypeError) as error:
        kind = _named(hint)
        what = f"{title}: {option} = {inline(value):.80} is not {kind}"
        raise ConfigError(what, where=where, fix=f"give {option} {kind}") from error


def _named(hint: Any) -> str:
    """What an annotation takes, in words, as far as there are any."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_named, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is Annotated:
        return _named(get_args(hint)[0])
    if get_origin(hint) in (tuple, list) and len(set(get_args(hint)) - {...}) == 1:
        return f"a list, each {_named(get_args(hint)[0])}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    words |= {tuple: "a list", list: "a list", dict: "a mapping"}
    kind = get_origin(hint) or hint
    return words.get(kind, kind.__name__ if isinstance(kind, type) else str(kind))
