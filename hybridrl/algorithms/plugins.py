"""From a name and options in a config to a plug-in; every mistake is refused at the key where it was made."""

from collections.abc import Mapping
from typing import Any

from hybridrl import registry
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.columns import COLUMNS
from hybridrl.config.options import make, taken
from hybridrl.errors import ConfigError
from hybridrl.outside import Guarded, is_outside

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
    plugin = registry.find(PACKAGES[kind], name, where=where)
    if isinstance(plugin, type):
        made = make(plugin, name, options, title=name, where=where, are_keys=True)
    else:
        taken(plugin, options, title=name, where=where, are_keys=True, positional=None)
        made = plugin
    if is_outside(name):
        made = Guarded(made, name, where=where)
    if kind in _DECLARE_COLUMNS:
        _check_columns(made, name, where)
    return made


def _check_columns(made: Any, name: str, where: str) -> None:
    if not hasattr(made, "needs"):
        raise ConfigError(
            f"{name} does not say which columns it needs", where=where, fix="needs = frozenset()"
        )
    unknown = set(made.needs) - COLUMNS.keys() - getattr(made, "makes", frozenset())
    if unknown:
        fix = f"columns are {', '.join(sorted(COLUMNS))}; others by hybridrl.columns.declare"
        raise ConfigError(f"{name} needs unknown columns {sorted(unknown)}", where=where, fix=fix)
