"""From a name and options in a config to a plug-in; every mistake is refused at the key where it was made."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.columns import COLUMNS
from hybridrl.errors import ConfigError
from hybridrl.outside import Guarded, is_outside, user_code

_DECLARE_COLUMNS = {"estimator", "policy_loss", "kl", "shaping"}
"""Kinds whose plug-ins have `needs`."""


def build(kind: str, name: str, options: Mapping[str, Any], *, where: str) -> Any:
    """The plug-in that a config names, made with its options.

    Args:
        kind: a key of PACKAGES.
        name: file name in the package of this kind, or "module:Name" for code outside.
        where: the config key, named in errors.

    Raises:
        ConfigError: no such plug-in, an unknown or mistyped option, options that contradict each other, or
            a needed column that does not exist.
        UserCodeError: code from outside raises, now or when it is called.
    """
    return made(kind, registry.find(PACKAGES[kind], name, where=where), name, options, where=where)


def made(kind: str, plugin: Callable, name: str, options: Mapping[str, Any], *, where: str) -> Any:
    """As `build`, of a plug-in that was found, or of what stands for it (declared.py)."""
    if isinstance(plugin, type):
        with user_code(name, key=where, where=where, plugin=plugin):
            found = _make(plugin, name, options, where)
    else:
        _check_known(options, [], name, where)
        found = plugin
    if is_outside(name):
        found = Guarded(found, name, where=where)
    if kind in _DECLARE_COLUMNS:
        _check_columns(found, name, where)
    return found


def _check_columns(made: Any, name: str, where: str) -> None:
    if not hasattr(made, "needs"):
        raise ConfigError(
            f"{name} does not say which columns it needs", where=where, fix="needs = frozenset()"
        )
    unknown = set(made.needs) - COLUMNS.keys() - getattr(made, "makes", frozenset())
    if unknown:
        fix = f"columns are {', '.join(sorted(COLUMNS))}; others by hybridrl.columns.declare"
        raise ConfigError(f"{name} needs unknown columns {sorted(unknown)}", where=where, fix=fix)


def _make(plugin: type, name: str, options: Mapping[str, Any], where: str) -> Any:
    fields = [f for f in dataclasses.fields(plugin) if f.init] if dataclasses.is_dataclass(plugin) else []
    _check_known(options, [f.name for f in fields], name, where)
    required = [f.name for f in fields if f.default is MISSING and f.default_factory is MISSING]
    for option in required:
        if option not in options:
            raise ConfigError(f"{name} needs the option {option}", where=where, fix=f"set {where}.{option}")
    hints = get_type_hints(plugin)
    values = {option: _typed(value, hints[option], f"{where}.{option}") for option, value in options.items()}
    try:
        return plugin(**values)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", where=where) from error


def _check_known(options: Mapping[str, Any], known: list[str], name: str, where: str) -> None:
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            fix = f"did you mean {near[0]}?" if near else listed
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
