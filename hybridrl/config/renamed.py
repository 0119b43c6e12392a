"""Keys that had another spelling in an earlier version. An old spelling is refused, and
`hybridrl config migrate` rewrites it.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config import strict_yaml
from hybridrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Renamed:
    """One key that is spelled differently now."""

    old: str
    """The dotted key."""

    new: str | Callable[[Any], Mapping[str, Any]]
    """The dotted key that takes the same value; or a function from the old value to the values of new dotted
    keys, {} for none."""

    since: str
    """Version in which it changed; "Unreleased" until that has a number."""

    def spelled(self, value: Any) -> Mapping[str, Any]:
        """New dotted key -> its value, for a value of the old one."""
        return {self.new: value} if isinstance(self.new, str) else self.new(value)


RENAMED: tuple[Renamed, ...] = (
    Renamed("run.mlflow", lambda logged: {} if logged else {"observe.sinks": []}, "Unreleased"),
)
"""Every key that changed, the latest first; CHANGELOG.md names them too."""


def described(entry: Renamed, value: Any) -> str:
    """The change in words, as in "run.mlflow = false is now observe.sinks = []"."""
    new = ", ".join(f"{key} = {strict_yaml.inline(new)}" for key, new in entry.spelled(value).items())
    return f"{entry.old} = {strict_yaml.inline(value)} is now {new or 'nothing: the key is gone'}"


def old_spellings(
    tree: Mapping[str, Any], file: str, place: Callable[[tuple[str, ...]], str], *, command_line: str
) -> list[ConfigError]:
    """An error for each old spelling in a config, which names the new one.

    Args:
        place: of a path of keys: where it was written.
        command_line: what `place` gives for an override.
    """
    errors = []
    for entry, value in in_tree(tree):
        where = place(tuple(entry.old.split(".")))
        new = " ".join(f"{key}={strict_yaml.inline(v)}" for key, v in entry.spelled(value).items())
        fix = f"hybridrl config migrate {file} rewrites it"
        if where == command_line:
            fix = f"write {new}" if new else "leave it out"
        errors.append(ConfigError(described(entry, value), where=where, fix=fix))
    return errors


def in_tree(tree: Mapping[str, Any], table: Sequence[Renamed] | None = None) -> Iterable[tuple[Renamed, Any]]:
    """Entries of the table whose old key is in a tree, and the value that stands there."""
    for entry in RENAMED if table is None else table:
        inner: Any = tree
        for name in entry.old.split("."):
            if not isinstance(inner, Mapping) or name not in inner:
                break
            inner = inner[name]
        else:
            yield entry, inner


def respelled(tree: Mapping[str, Any], table: Sequence[Renamed] | None = None) -> dict[str, Any]:
    """The tree with every old spelling in its new one; where both are set, the new one stays."""
    found = dict(tree)
    for entry, value in in_tree(tree, table):
        found = without(found, entry.old)
        for key, new in entry.spelled(value).items():
            with contextlib.suppress(ConfigError):  # the old spelling is refused already
                found = with_key(found, key, new)
    return found


def without(tree: Mapping[str, Any], old: str) -> dict[str, Any]:
    """The tree without a dotted key; the tree given stays as it is."""
    name, _, rest = old.partition(".")
    kept = {key: value for key, value in tree.items() if key != name or rest}
    if rest and isinstance(kept.get(name), Mapping):
        kept[name] = without(kept[name], rest)
    return kept


def with_key(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The tree with a dotted key set.

    Raises:
        ConfigError: what stands above it is no section, or the key is set already.
    """
    name, _, rest = key.partition(".")
    if rest:
        inner = tree.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(f"{name} = {strict_yaml.inline(inner)} has no keys", fix=f"cannot set {key}")
        return {**tree, name: with_key(inner or {}, rest, value)}
    if name in tree:
        raise ConfigError(f"both {name} and its old spelling are set", fix="keep the new one")
    return {**tree, name: value}
