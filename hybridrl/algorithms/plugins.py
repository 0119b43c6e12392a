"""Builds a plug-in from a name and options in a config; an error names the config key of the mistake."""

from collections.abc import Callable, Mapping
from typing import Any

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.columns import COLUMNS
from hybridrl.config.options import make, taken
from hybridrl.errors import ConfigError
from hybridrl.outside import Guarded, is_outside

_DECLARE_COLUMNS = {"estimator", "policy_loss", "kl", "shaping"}
"""Kinds whose plug-ins must have `needs`."""


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
    """Make a plug-in as `build` does, from a class that was already found, or from its stand-in
    (declared.py)."""
    if isinstance(plugin, type):
        found = make(plugin, name, options, title=name, where=where, are_keys=True)
    else:
        taken(plugin, options, title=name, where=where, are_keys=True, positional=None)
        found = plugin
    if is_outside(name):
        found = Guarded(found, name, where=where)
    if kind in _DECLARE_COLUMNS or hasattr(found, "needs"):
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
