"""Finds plug-ins by name or by dotted path. A plug-in is one file in its package, and the file's name is its
name in a config.

There is no central list: `find("hybridrl.algorithms.estimators", "grpo")` imports that module and returns the
plug-in that it registers. `find(..., "my_lab.rank_advantage:RankAdvantage")` imports code outside the
project, and so does `find(..., "my_lab/rank_advantage.py:RankAdvantage")`.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from hybridrl.errors import ConfigError, ResourceError, UserCodeError
from hybridrl.outside import imported, is_file, user_code

Plugin = TypeVar("Plugin", bound=Callable)

_MARK = "__hybridrl_plugin__"


def register(kind: str, name: str) -> Callable[[Plugin], Plugin]:
    """Mark a class or function as the plug-in `name` of its kind: "estimator", "policy_loss", "reward" ..."""

    def mark(plugin: Plugin) -> Plugin:
        setattr(plugin, _MARK, (kind, name))
        return plugin

    return mark


def kind_of(plugin: object) -> str | None:
    """The kind under which a class or function is registered; None if it is not registered."""
    return getattr(plugin, _MARK, (None, None))[0]


def names(package: str, *, folders: bool = False) -> list[str]:
    """Names of the plug-ins of a package, sorted, without importing them.

    Args:
        folders: only folders of the package are plug-ins, not files.
    """
    path = importlib.import_module(package).__path__
    found = (m for m in pkgutil.iter_modules(path) if m.ispkg or not folders)
    return sorted(m.name for m in found if not m.name.startswith("_"))


def find(
    package: str,
    name: str,
    *,
    where: str = "",
    key: str = "",
    folders: bool = False,
    has: Iterable[str] = (),
) -> Callable:
    """The plug-in that a config names.

    Args:
        package: package with the project's own plug-ins of this kind.
        name: name of a file in `package`, or "module.path:attribute" or "folder/file.py:attribute" for code
            outside the project.
        where: place in the config, for errors.
        key: config key that names the plug-in; "" if `where` is the key.
        folders: see `names`.
        has: attributes that a plug-in outside the project must have.

    Raises:
        ConfigError: there is no such plug-in (the message has the nearest names), or it lacks an attribute.
        UserCodeError: importing code outside the project raised an error.
    """
    if ":" in name:
        _refuse_malformed(name, where, key or where)
        found = _outside(name, where, key or where)
        if not callable(found):
            raise ConfigError(
                f"{name} is {found!r:.40}, which cannot be called",
                where=where,
                fix=f"{key or where} names a function or a class",
            )
        if missing := [attribute for attribute in has if not hasattr(found, attribute)]:
            raise ConfigError(
                f"{name} has no {', '.join(missing)}",
                where=where,
                fix=f"{key or where} names a class with these",
            )
        return found
    check_name(package, name, where=where, folders=folders)
    plugins = vars(importlib.import_module(f"{package}.{name}"))
    marked = [v for v in plugins.values() if getattr(v, _MARK, (None, None))[1] == name]
    if not marked:
        raise ConfigError(
            f"{package}.{name} registers nothing as {name!r}", where=where, fix="add @register(kind, name)"
        )
    return marked[0]


def check_name(package: str, name: str, *, where: str = "", folders: bool = False) -> None:
    """Refuse a name that is not among `names`, without importing plug-ins. The arguments are those of `find`.

    Raises:
        ConfigError: there is no such plug-in; the message has the nearest names.
    """
    known = names(package, folders=folders)
    if is_file(name):
        raise ConfigError(
            f"{name!r} names a file and nothing in it",
            where=where,
            fix=f"write {name}:NAME, with a name in it",
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ConfigError(
            f"{package.removesuffix('.kinds').rsplit('.', 1)[-1]} has no {name!r}",
            where=where,
            fix=f"use one of {', '.join(near)}, or module:Name",
        )


def module(package: str, name: str, *, what: str) -> ModuleType:
    """A module of a package whose base.py defines the interface of its modules.

    Args:
        what: word for such a module in the error.

    Raises:
        ResourceError: the package has no module of that name.
    """
    known = [found for found in names(package) if found != "base"]
    if name not in known:
        raise ResourceError(f"no {what} {name!r} here", fix=f"use one of {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")


def folders(package: str, part: str) -> list[str]:
    """Names of the sub-packages of a package that have a module `part`, sorted, without importing them."""
    (root,) = importlib.import_module(package).__path__
    return sorted(path.parent.name for path in Path(root).glob(f"*/{part}.py"))


def _refuse_malformed(name: str, where: str, key: str) -> None:
    module_name, _, attribute = name.rpartition(":")
    parts = module_name.split(".")
    if attribute.isidentifier() and (is_file(module_name) or all(map(str.isidentifier, parts))):
        return
    raise ConfigError(
        f"{key} = {name!r} is not module:Name",
        where=where,
        fix="write it as in my_package.my_module:MyName",
    )


def _outside(path: str, where: str, key: str) -> Callable:
    module_name, _, attribute = path.rpartition(":")
    if is_file(module_name) and not Path(module_name).is_file():
        raise _no_file(module_name, where)
    try:
        with user_code(path, key=key, where=where):
            found = imported(module_name)
    except (ModuleNotFoundError, UserCodeError) as error:
        missing = error.__cause__ if isinstance(error, UserCodeError) else error
        if is_file(module_name) or not _is_missing(module_name, missing):
            raise
        what = f"cannot import {module_name!r}: {missing}"
        raise ConfigError(what, where=where, fix="check the name, or set PYTHONPATH") from error
    if not hasattr(found, attribute):
        near = difflib.get_close_matches(attribute, dir(found), n=1)
        raise ConfigError(
            f"{module_name} has no {attribute!r}", where=where, fix=f"did you mean {near[0]}?" if near else ""
        )
    return getattr(found, attribute)


def _no_file(file: str, where: str) -> ConfigError:
    folder = Path(file).parent
    near = difflib.get_close_matches(file, map(str, folder.glob("*.py")), n=1, cutoff=0.4)
    fix = f"did you mean {near[0]}?" if near else f"it is looked for in {folder.absolute()}"
    return ConfigError(f"there is no file {file}", where=where, fix=fix)


def _is_missing(module_name: str, error: BaseException | None) -> bool:
    """Whether the module itself or a parent package of it is missing, not a module that it imports."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")
