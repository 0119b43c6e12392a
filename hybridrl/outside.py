"""Imports and guards code outside the project, which a config names as module:Name or file.py:Name.

Errors of that code get key, file and line.

Ctrl-C while such code runs stays a KeyboardInterrupt, because the user has caused it and not the code; so do
the ends of a coroutine and of a generator.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hybridrl.errors import HybridRLError, UserCodeError

_OURS = str(Path(__file__).parent)


def is_outside(name: str) -> bool:
    """Whether a plug-in's name in a config refers to code outside the project."""
    return ":" in name and not name.startswith("hybridrl.")


def is_file(module: str) -> bool:
    """Whether the first part of a plug-in's name in a config is a Python file, not a module."""
    return module.endswith(".py")


def imported(module: str) -> ModuleType:
    """A module by its dotted name or by the path of its file, which is run once in a process.

    A file may import modules in its own folder; those of the same name elsewhere on the path come first.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: whatever the module raises.
    """
    if not is_file(module):
        return importlib.import_module(module)
    path = Path(module).resolve()
    name = str(path)  # as in sys.modules: no dotted name is a path
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise
    return made


@contextlib.contextmanager
def user_code(name: str, *, key: str, where: str, plugin: Any = None) -> Iterator[None]:
    """A context in which errors of code outside the project become UserCodeErrors.

    Named errors stay as they are.

    Args:
        name: name of the plug-in in the config. Errors of the project's own plug-ins are not changed.
        key: config key that names the plug-in.
        where: place in the config, for the error.
        plugin: the plug-in; the error names its definition if no line of it raised, as for a wrong call.

    Raises:
        UserCodeError: the message has the error, the key, the file and line, and the text of the line.
    """
    try:
        yield
    except (HybridRLError, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as error:  # also SystemExit, and what a user derives from BaseException
        if not is_outside(name):
            raise
        what = f"{key} = {name} {_said(error)}{_line(error, plugin)}"
        raise UserCodeError(what, where=where, fix="correct it there") from error


class Guarded:
    """A proxy of a plug-in outside the project.

    Calls, attributes, coroutines and generators of the plug-in run under user_code().
    """

    def __init__(self, plugin: Any, name: str, *, where: str, makes: Sequence[str] = ()) -> None:
        """
        Args:
            makes: names of methods whose results are guarded in the same way.
        """
        self._plugin, self._name, self._where, self._makes = plugin, name, where, makes

    def __call__(self, *args: Any, **columns: Any) -> Any:
        with self._inside():
            result = self._plugin(*args, **columns)
        if inspect.iscoroutine(result):
            return self._awaited(result)
        if inspect.isgenerator(result):
            return self._iterated(result)
        makes = inspect.ismethod(self._plugin) and self._plugin.__name__ in self._makes
        return self._guarded(result) if makes else result

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or "_plugin" not in self.__dict__:
            raise AttributeError(attribute)
        if not hasattr(type(self._plugin), attribute) and not hasattr(self._plugin, attribute):
            raise AttributeError(attribute)
        with self._inside():
            value = getattr(self._plugin, attribute)
        return self._guarded(value) if inspect.ismethod(value) else value

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with self._inside():
            return await coroutine

    def _iterated(self, items: Iterator[Any]) -> Iterator[Any]:
        with self._inside():
            yield from items

    def _guarded(self, part: Any) -> "Guarded":
        return Guarded(part, self._name, where=self._where, makes=self._makes)

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return user_code(self._name, key=self._where, where=self._where, plugin=self._plugin)


def called(plugin: Callable, name: str, *args: Any, key: str, where: str, **options: Any) -> Any:
    """Call a plug-in that may be outside the project; returns its result.

    Raises:
        UserCodeError: the plug-in raised, see user_code().
    """
    with user_code(name, key=key, where=where, plugin=plugin):
        return plugin(*args, **options)


def _said(error: BaseException) -> str:
    text = f": {error}"[:500] if str(error) else ""
    if isinstance(error, SystemExit):
        return f"ends the program by SystemExit{text}"
    return f"raises {type(error).__name__}{text}"


def _line(error: BaseException, plugin: Any) -> str:
    """Place and text of the innermost line of the user's code; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f", at {error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_of(f.filename, _OURS)]
    last = [f for f in frames if not _is_library(f.filename)]
    last = last or [f for f in frames if "site-packages" in f.filename]
    if last:
        return f", at {last[-1].filename}:{last[-1].lineno} in {last[-1].name}: {last[-1].line}"
    return _definition(plugin)


def _definition(plugin: Any) -> str:
    """Place of a plug-in's definition, for a call with wrong arguments; "" if it has no file."""
    source = plugin if inspect.isroutine(plugin) or isinstance(plugin, type) else type(plugin)
    try:
        file, number = inspect.getsourcefile(source) or "", inspect.getsourcelines(source)[1]
    except (TypeError, OSError):  # code without a file
        return ""
    return f", at {file}:{number}: {linecache.getline(file, number).strip()}"


def _is_library(file: str) -> bool:
    return "site-packages" in file or file.startswith("<") or _is_of(file, sysconfig.get_path("stdlib"))


def _is_of(file: str, folder: str) -> bool:
    return Path(file).is_relative_to(folder)
