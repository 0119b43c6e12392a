"""The owner's side of a process of environments: starts it, asks it under deadlines, and ends it.

Waits: each request waits for its own answer, and for none longer than its deadline. A request that is overdue
ends the process, and with it all its episodes.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from typing import Any

from hybridrl import errors
from hybridrl.environments import frames
from hybridrl.environments.base import EnvironmentFailedError, Phase, ToolSchema
from hybridrl.errors import HybridRLError
from hybridrl.hosts.variables import child_environment

DUMP_SIGNAL = signal.SIGUSR1
"""Asks a process to write where each of its threads is."""

_BOOT = (
    "import sys; *fds, owner = map(int, sys.argv[1:4]); sys.path[:] = sys.argv[4:]; "
    "from hybridrl.environments.child import main; main(*fds, owner)"
)
_STACK_WAIT_S = 0.5
_END_WAIT_S = 5.0


class EnvironmentProcess:
    """A process that plays episodes."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: the environment's, in errors.
        """
        self.name = name
        self.num_episodes = 0
        """Episodes in it, counted by its user."""

        self.schemas: tuple[ToolSchema, ...] = ()
        self.text_tools: tuple[str, ...] = ()
        """Names of tools that the policy calls in plain text."""

        self.failure: EnvironmentFailedError | None = None
        """Why it is gone; None: it lives."""

        self._number = 0
        self._last_stack = ""
        """What its stack file held at its end."""

        self._waiting: dict[int, tuple[Phase, asyncio.Future[Any]]] = {}
        self._closed = False

    async def start(self, order: Mapping[str, Any], variables: Sequence[str], *, timeout_s: float) -> None:
        """Start it and load the environment.

        Raises:
            HybridRLError: the environment or a tool cannot be loaded.
            EnvironmentFailedError: the process died or did not get ready in time.
        """
        self._stack_fd = os.memfd_create("hybridrl-environment-stack")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._popen(theirs.fileno(), variables)
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=2**20)
        self._writer.write(frames.pack(order))
        try:
            ready = await asyncio.wait_for(frames.read(self._reader), timeout_s)
            self.schemas, self.text_tools = _tools(ready)
        except TimeoutError:
            what = f"environment {self.name} was not ready within {timeout_s:g} s"
            raise await self._fail(what, "start", "timeout", where=await self._hung_at()) from None
        except (EOFError, ConnectionError, frames.BadFrameError) as error:
            what = f"environment {self.name}: its process ended while it started"
            raise await self._fail(what, "start", "died", because=error) from error
        except HybridRLError:
            await self.end()
            raise
        self._listener = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, do: Phase, episode: int, timeout_s: float, **values: Any) -> Any:
        """What the process answers; None for close.

        Raises:
            EnvironmentFailedError: it raised, answered nonsense or nothing in time, or died.
        """
        if self.failure is not None:
            raise self.failure
        try:
            frame = frames.pack({"n": self._number + 1, "do": do, "episode": episode, **values})
        except (ValueError, TypeError, RecursionError) as error:
            what = f"environment {self.name}: what {do} is given cannot be sent: {error}"
            raise _failed(what, do, "invalid") from error
        self._number += 1
        answer = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = do, answer
        number = self._number
        try:
            self._writer.write(frame)
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            limit = f"environment.{do}_timeout_s = {timeout_s:g}"
            what = f"environment {self.name}: {do} did not return within {timeout_s:g} s, {limit}"
            raise await self._fail(what, do, "timeout", where=await self._hung_at()) from None
        finally:
            self._waiting.pop(number, None)

    async def end(self) -> None:
        """Kill the process and all that it started. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._writer.close()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)
        self._last_stack = self._stack()
        os.close(self._stack_fd)
        self._stack_fd = -1

    def _popen(self, connection_fd: int, variables: Sequence[str]) -> subprocess.Popen[bytes]:
        given = map(str, (connection_fd, self._stack_fd, os.getpid()))
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, *given, *sys.path],
            pass_fds=[connection_fd, self._stack_fd],
            stdin=subprocess.DEVNULL,
            env=child_environment(variables, key="environment.variables"),
            start_new_session=True,  # Ctrl-C is for the owner
        )

    async def _listen(self) -> None:
        try:
            while True:
                self._hand_out(await frames.read(self._reader))
        except (EOFError, ConnectionError) as error:
            await self._fail(f"environment {self.name}: its process died", None, "died", because=error)
        except (frames.BadFrameError, KeyError, TypeError, AttributeError) as error:
            what = f"environment {self.name}: its process answered nonsense: {error}"
            await self._fail(what, None, "invalid")

    def _hand_out(self, reply: Mapping[str, Any]) -> None:
        do, answer = self._waiting.pop(reply["n"], (None, None))
        if answer is None or do is None or answer.done():
            return
        if raised := reply.get("raised"):
            what, reason = f"environment {self.name}: {do} {raised['what']}", str(raised["reason"])
            answer.set_exception(_failed(what, do, reason, where=str(raised["where"])))
        else:
            answer.set_result(reply["seen"])

    async def _fail(
        self,
        what: str,
        phase: Phase | None,
        reason: str,
        *,
        where: str = "",
        because: BaseException | None = None,
    ) -> EnvironmentFailedError:
        """End the process, and let everything that waits for it fail; returns the error of `phase`."""
        if self.failure is not None or self._closed:
            return self.failure or _failed(what, phase or "step", reason, where=where)
        error = _failed(what, phase or "step", reason, where=where)
        self.failure = _failed(f"{what}, and another episode of that process was lost", "step", "neighbour")
        stack = _user_line(self._stack()) if because is not None else ""
        await self.end()
        if because is not None:
            error.what = f"{what}: {_exit_reason(self._process.returncode)}"
            error.where = error.where or stack
        for do, answer in list(self._waiting.values()):
            if not answer.done():
                lost = phase is not None
                answer.set_exception(
                    self.failure if lost else _failed(error.what, do, reason, where=error.where)
                )
        return error

    async def _hung_at(self) -> str:
        """The line that a hanging process executes, as far as it can say."""
        if not self._closed:  # another request that was overdue may have ended it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, DUMP_SIGNAL)
                await asyncio.sleep(_STACK_WAIT_S)
        return _user_line(self._stack())

    def _stack(self) -> str:
        if self._stack_fd < 0:
            return self._last_stack
        size = os.fstat(self._stack_fd).st_size
        return os.pread(self._stack_fd, min(size, 2**20), 0).decode(errors="replace")


def _failed(what: str, phase: Phase, reason: str, *, where: str = "") -> EnvironmentFailedError:
    return EnvironmentFailedError(what, where=where, phase=phase, reason=reason)


def _tools(ready: Any) -> tuple[tuple[ToolSchema, ...], tuple[str, ...]]:
    """
    Raises:
        HybridRLError: the child refused the environment.
        BadFrameError: it said neither.
    """
    match ready:
        case {"schemas": [*schemas], "text_tools": [*names]} if all(isinstance(s, dict) for s in schemas):
            return tuple(schemas), tuple(map(str, names))
        case {"refused": {"kind": str(kind), "what": str(what), "where": str(where), "fix": str(fix)}}:
            named = getattr(errors, kind, None)
            if isinstance(named, type) and issubclass(named, HybridRLError):
                raise named(what, where=where, fix=fix)
            raise errors.ConfigError(what, where=where, fix=fix)
    raise frames.BadFrameError(f"{ready!r:.80} where a ready message was expected")


def _user_line(stack: str) -> str:
    """The innermost line of code outside Python's library and the project, in a stack of faulthandler."""
    library, ours = sysconfig.get_path("stdlib"), os.path.dirname(__file__)
    lines: list[tuple[str, str, str]] = re.findall(
        r'^  File "(.+)", line (\d+) in (.+)$', stack, re.MULTILINE
    )
    own = [f"{file}:{line} in {name}" for file, line, name in lines if not _is_foreign(file, library, ours)]
    return own[0] if own else ""


def _is_foreign(file: str, library: str, ours: str) -> bool:
    own_kind = file.startswith(f"{ours}{os.sep}kinds")
    return file.startswith("<") or (file.startswith((library, ours)) and not own_kind)


def _exit_reason(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"it exited with code {code}"
