"""Options of a plug-in, checked against its signature before it is called for the first time."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from hybridrl.errors import ConfigError


def check_options(
    plugin: Callable,
    options: Mapping[str, Any],
    *,
    title: str,
    where: str,
    positional: int = 0,
    supplied: Collection[str] = (),
    beside: Collection[str] = (),
) -> None:
    """Refuse an unknown option, a missing one, and a value of another type than the plug-in declares.

    Args:
        title: names the plug-in in an error: "reward regex".
        where: the config place of its options.
        positional: how many leading parameters the caller fills, which are no options.
        supplied: parameters that the caller fills by name.
        beside: keys that stand beside the options in the config; a mistyped one is looked for there too.

    Raises:
        ConfigError: names the nearest option.
    """
    parameters = _parameters(plugin, positional)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = {name: p for name, p in known.items() if name not in supplied}
    for option in options:
        if option not in known and not takes_any:
            raise ConfigError(
                f"{title} has no option {option!r}", where=where, fix=_nearest(option, known, beside)
            )
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise ConfigError(f"{title} needs the option {missing[0]}", where=where, fix=f"add {missing[0]}: ...")
    _check_types(plugin, {k: v for k, v in options.items() if k in known}, title, where)


def _parameters(plugin: Callable, positional: int) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(plugin).parameters.values())[positional:]
    except ValueError:  # a builtin without a signature takes no options
        return []


def _nearest(option: str, known: Collection[str], beside: Collection[str]) -> str:
    near = difflib.get_close_matches(option, [*known, *beside], n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"its options are {', '.join(known)}" if known else "it has none"


def _check_types(plugin: Callable, options: Mapping[str, Any], title: str, where: str) -> None:
    hints = _hints(plugin)
    for option, value in options.items():
        if option in hints and not _fits(value, hints[option]):
            hint = hints[option]
            kind = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ConfigError(
                f"{title}: {option} = {value!r} is not {kind}", where=where, fix=f"give {option} a {kind}"
            )


def _hints(plugin: Callable) -> dict[str, Any]:
    if isinstance(plugin, type):
        plugin = plugin.__init__
    elif not inspect.isroutine(plugin):
        plugin = type(plugin).__call__
    try:
        return get_type_hints(plugin)
    except (NameError, TypeError):  # annotations that only its author can resolve check nothing
        return {}


def _fits(value: Any, hint: Any) -> bool:
    # Imported here: 0.1 s that a plug-in without options need not wait.
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except PydanticSchemaGenerationError:  # a class of the author's own
        return True
    except ValidationError:
        return False
    return True
