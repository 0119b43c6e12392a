"""Starts programs in a box: a forked child, under the limits, with pipes as its stdin, stdout and stderr."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hybridrl.sandbox.inside import confine
from hybridrl.sandbox.inside.filter import lone_process_filter
from hybridrl.sandbox.inside.limits import Limits

NOT_STARTED = 127
"""Exit code of a program that cannot be executed, as in a shell."""

_MOST_FILES = 4096


@dataclass(frozen=True, slots=True)
class Setting:
    """The box as its first process was told."""

    limits: Limits
    folder: str
    """The one folder that a program may write to: its working folder, HOME and TMPDIR."""

    packages: tuple[str, ...]
    """Folders of Python packages."""

    lone: bool
    """Whether programs share the machine's processes with others (Landlock); then each is one process."""

    other_processes: int
    """Processes and threads of the same user, as the kernel counts them, that are not a program's."""

    @property
    def environment(self) -> dict[str, str]:
        python = os.path.dirname(sys.executable)
        return {
            "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin",
            "HOME": self.folder,
            "TMPDIR": self.folder,
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(self.packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


@dataclass(frozen=True, slots=True)
class Pipes:
    """This side's ends of a child's pipes."""

    pid: int
    stdin: int
    stdout: int
    stderr: int
    commands: int = -1
    results: int = -1

    def close(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr, self.commands, self.results):
            if fd >= 0:
                os.close(fd)


def start_program(argv: Sequence[str], setting: Setting, folder: str, variables: Mapping[str, str]) -> Pipes:
    """Execute a program in a folder, found as a shell finds it.

    Args:
        variables: further ones of its environment.
    """

    def body() -> None:
        try:
            os.chdir(folder)
            os.execvpe(argv[0], list(argv), {**setting.environment, **variables})
        except (OSError, ValueError) as error:
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode(errors="replace"))
            os._exit(NOT_STARTED)

    return _fork(setting, body)


def start_python(setting: Setting, body: Callable[[], None]) -> Pipes:
    """Run a function in a fork of this interpreter, with stdin, stdout and stderr of its own."""
    return _fork(setting, lambda: _as_interpreter(setting, body))


def start_session(setting: Setting, body: Callable[[int, int], None]) -> Pipes:
    """As start_python, with an empty stdin and two further pipes: body(commands, results)."""
    commands, results = os.pipe(), os.pipe()
    pipes = _fork(
        setting,
        lambda: _as_interpreter(setting, lambda: body(commands[0], results[1])),
        keep=(commands[0], results[1]),
    )
    for fd in (commands[0], results[1], pipes.stdin):
        os.close(fd)
    os.set_blocking(commands[1], False)
    os.set_blocking(results[0], False)
    return Pipes(pipes.pid, -1, pipes.stdout, pipes.stderr, commands[1], results[0])


def write_files(files: Mapping[str, bytes], folder: str) -> None:
    """Write files below a folder.

    Raises:
        OSError: a path leads out of the box, is no ordinary file, or there is no room.
    """
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o644), "wb") as file:
            file.write(content)


def read_file(path: str, limit: int) -> bytes:
    """The content of an ordinary file.

    Raises:
        OSError: there is none, it is something else, or it is larger than the limit.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
        data = file.read(limit + 1)
    if len(data or b"") > limit:
        raise OSError(f"{path} has more than {limit} bytes")
    return data or b""


def empty_folder(folder: str) -> None:
    """Remove all that a folder holds."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _fork(setting: Setting, body: Callable[[], None], keep: Sequence[int] = ()) -> Pipes:
    stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child((stdin[0], stdout[1], stderr[1]), setting, body, keep)
    for fd in (stdin[0], stdout[1], stderr[1]):
        os.close(fd)
    for fd in (stdin[1], stdout[0], stderr[0]):
        os.set_blocking(fd, False)
    return Pipes(pid, stdin[1], stdout[0], stderr[0])


def _child(
    streams: tuple[int, int, int], setting: Setting, body: Callable[[], None], keep: Sequence[int]
) -> None:
    code = NOT_STARTED
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        _close_all_but(keep)
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.chdir(setting.folder)
        if setting.lone:
            confine.die_with_parent()
        confine.set_limits(setting.limits, other_processes=setting.other_processes)
        confine.limit_cpu(setting.limits.cpu_s)
        confine.set_dumpable(True)
        if setting.lone:
            confine.apply_filter(lone_process_filter(os.getpid()))
        body()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # a process edge: the result shows it
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _close_all_but(keep: Sequence[int]) -> None:
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _MOST_FILES)


def _as_interpreter(setting: Setting, body: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(setting.environment)
    sys.path += [setting.folder, *setting.packages]
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
    try:
        body()
    finally:
        _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the program closed it
            pass
