"""From a name and options in a config to a plug-in, with every mistake refused at the key where it was
made."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hybridrl import registry
from hybridrl.algorithms.base import SCALAR_COLUMNS, TOKEN_COLUMNS
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.errors import ConfigError


def build(kind: str, name: str, options: Mapping[str, Any], *, where: str) -> Any:
    """The plug-in that a config names, made with its options.

    Args:
        kind: a key of PACKAGES.
        name: file name in the package of this kind, or "module:Name" for code outside.
        where: the config key, named in errors.

    Raises:
        ConfigError: no such plug-in, an unknown or mistyped option, options that contradict each other, or a
        needed column
            that does not exist.
    """
    plugin = registry.find(PACKAGES[kind], name, where=where)
    made = (
        _make(plugin, name, options, where)
        if isinstance(plugin, type)
        else _function(plugin, name, options, where)
    )
    unknown = (
        set(getattr(made, "needs", ())) - SCALAR_COLUMNS - TOKEN_COLUMNS - getattr(made, "makes", frozenset())
    )
    if unknown:
        known = ", ".join(sorted(SCALAR_COLUMNS | TOKEN_COLUMNS))
        raise ConfigError(
            f"{name} needs unknown columns {sorted(unknown)}", where=where, fix=f"columns are {known}"
        )
    return made


def _make(plugin: type, name: str, options: Mapping[str, Any], where: str) -> Any:
    fields = [f for f in dataclasses.fields(plugin) if f.init] if dataclasses.is_dataclass(plugin) else []
    hints = get_type_hints(plugin)
    for option in options:
        _check_known(option, [f.name for f in fields], name, where)
    for f in fields:
        if (
            f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
            and f.name not in options
        ):
            raise ConfigError(f"{name} needs the option {f.name}", where=where, fix=f"set {where}.{f.name}")
    values = {option: _typed(value, hints[option], f"{where}.{option}") for option, value in options.items()}
    try:
        return plugin(**values)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", where=where) from error


def _function(plugin: Any, name: str, options: Mapping[str, Any], where: str) -> Any:
    for option in options:
        _check_known(option, [], name, where)
    return plugin


def _check_known(option: str, known: list[str], name: str, where: str) -> None:
    if option not in known:
        near = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
        fix = (
            f"did you mean {near[0]}?"
            if near
            else f"its options are {', '.join(known)}"
            if known
            else "it has none"
        )
        raise ConfigError(f"{name} has no option {option!r}", where=f"{where}.{option}", fix=fix)


def _typed(value: Any, hint: Any, where: str) -> Any:
    try:
        # Strict JSON rules: an int is a float, a list is a tuple, but a string or a bool is no number.
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        expected = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
        raise ConfigError(
            f"{value!r} is not a value for this option", where=where, fix=f"it takes {expected}"
        ) from error
