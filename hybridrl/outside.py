"""Code from outside the project, which a config names by module:Name: what it raises is said with its place.

Ctrl-C while such code runs stays what it is: it is the person's, not the code's.
"""

import contextlib
import inspect
import linecache
import sysconfig
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridrl.errors import HybridRLError, UserCodeError

_OURS = str(Path(__file__).parent)


def is_outside(name: str) -> bool:
    """Whether a plug-in's name in a config is of code that is not the project's own."""
    return ":" in name and not name.startswith("hybridrl.")


@contextlib.contextmanager
def user_code(name: str, *, key: str, where: str, plugin: Any = None) -> Iterator[None]:
    """What code from outside raises inside becomes a UserCodeError; named errors stay as they are.

    Args:
        name: of the plug-in, as the config has it. The project's own code is left alone.
        key: config key that names it.
        where: the config place, for the error.
        plugin: what is called; its definition is the place of an error that no line of it raised.

    Raises:
        UserCodeError: names the error, the key, file and line, and the line itself.
    """
    try:
        yield
    except HybridRLError:
        raise
    except (Exception, SystemExit) as error:
        if not is_outside(name):
            raise
        what = f"{key} = {name} {_said(error)}{_line(error, plugin)}"
        raise UserCodeError(what, where=where, fix="correct it there") from error


class Guarded:
    """A plug-in from outside: called and read as itself, awaited and iterated over too, under user_code()."""

    def __init__(self, plugin: Any, name: str, *, where: str, makes: Sequence[str] = ()) -> None:
        """
        Args:
            makes: names of methods whose results are guarded as the plug-in is.
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
    """What a plug-in that may be from outside returns.

    Raises:
        UserCodeError: as user_code().
    """
    with user_code(name, key=key, where=where, plugin=plugin):
        return plugin(*args, **options)


def _said(error: BaseException) -> str:
    text = f": {error}"[:500] if str(error) else ""
    if isinstance(error, SystemExit):
        return f"ends the program by SystemExit{text}"
    return f"raises {type(error).__name__}{text}"


def _line(error: BaseException, plugin: Any) -> str:
    """The place and the text of the user's last line; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f", at {error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_of(f.filename, _OURS)]
    last = [f for f in frames if not _is_library(f.filename)]
    last = last or [f for f in frames if "site-packages" in f.filename]
    if last:
        return f", at {last[-1].filename}:{last[-1].lineno} in {last[-1].name}: {last[-1].line}"
    return _definition(plugin)


def _definition(plugin: Any) -> str:
    """Where a plug-in is written, for a call that it does not take."""
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
