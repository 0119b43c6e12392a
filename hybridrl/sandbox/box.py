"""A box as its owner sees it: programs and Python calls go in, results come out.

What comes out is read as bytes from an enemy: it has one form and a size, or the box is ended. Who waits for
whom: a call waits for the box, and no longer than the call's limit and _GRACE_S.
"""

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.errors import SandboxError
from hybridrl.sandbox.inside.frames import Frame, FrameError, FrameReader, pack
from hybridrl.sandbox.inside.session import FRAME_BYTES
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.start import Kind, Shared, Started, start

Ended = Literal["exit", "error", "signal", "time", "memory", "cpu", "disk", "output"]
"""How a call ended: exit 0 (a session: without an exception), another exit code or an exception, a signal, or
the limit that it passed."""

_LIMITS = ("time", "memory", "cpu", "disk", "output")

_GRACE_S = 60.0
"""Seconds beyond a call's limit within which the box has to answer: the machine may be busy."""

_START_S = 120.0

Answerer = Callable[[Any], Awaitable[Any]]
"""Gives the answer to a question that a program in a session asks."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a call did."""

    ended: Ended
    code: int
    """Exit code of the program; -n: signal n ended it. 0 for a session that lives on."""

    stdout: bytes
    stderr: bytes
    seconds: float
    cpu_s: float
    """Processor time of the program, without that of programs it started."""

    done: Mapping[str, Any] | None = None
    """What a session answered, unchecked: it comes from the program."""

    lost: bool = False
    """A session was ended by this call; the next one begins with nothing."""

    @property
    def ok(self) -> bool:
        return self.ended == "exit"

    @property
    def text(self) -> str:
        """stdout, stderr and how it ended, for a model to read."""
        parts = [part.decode(errors="replace").rstrip("\n") for part in (self.stdout, self.stderr)]
        if self.ended in _LIMITS:
            parts.append(f"[ended: it passed the limit of {self.ended}]")
        elif self.ended == "signal":
            parts.append(f"[ended by {signal_name(-self.code)}]")
        elif self.code:
            parts.append(f"[exit code {self.code}]")
        if self.lost:
            parts.append("[the session was ended: variables are gone]")
        return "\n".join(part for part in parts if part)


class Box:
    """One box. One call at a time; close() ends it with all that runs in it.

    A call that is cancelled, or not answered, ends the box: the next call raises SandboxError.
    """

    def __init__(self, kind: Kind | Literal["service"], limits: Limits, started: Started) -> None:
        """Use Box.start."""
        self.kind, self.limits = kind, limits
        self._started = started
        self._reader = FrameReader(max(FRAME_BYTES, 2 * limits.output_bytes, limits.disk_bytes) + 4096)
        self._frames: list[Frame] = []
        self._why_ended = ""
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls, kind: Kind, limits: Limits, shared: Shared | None = None) -> "Box":
        """Start a box and wait until it has given up its rights.

        Raises:
            SandboxError: it cannot be started here; the message says what refused.
        """
        return await cls.over(kind, limits, start(kind, limits, shared))

    @classmethod
    async def over(cls, kind: Kind | Literal["service"], limits: Limits, started: Started) -> "Box":
        """The box of a process that was started, once it is ready.

        Raises:
            SandboxError: as start().
        """
        box = cls(kind, limits, started)
        box._started.socket.setblocking(False)
        try:
            ready = await box._exchange(box._started.order, (), _START_S, None)
            if ready.header.get("ready") is not True:
                raise SandboxError(f"a box of kind {kind}: {ready.header.get('error')}")
        except BaseException:
            await box.close()
            raise
        return box

    @property
    def closed(self) -> bool:
        return bool(self._why_ended)

    @property
    def connection(self) -> socket.socket:
        """The socket to the first process, for a caller that carries its bytes elsewhere."""
        return self._started.socket

    @property
    def own_user(self) -> bool:
        """Whether its programs run under a user id of their own, or in a user namespace."""
        return self.kind != "landlock" or self._started.order["user"] is not None

    def take_listener(self) -> socket.socket:
        """The socket that listens on the box's own loopback; the caller closes it. It exists once, in a box
        with Shared.port."""
        channel, self._started.listeners = self._started.listeners, None
        assert channel is not None, "the box shares no port, or its listener was taken"
        with channel:
            _, (listener,), _, _ = socket.recv_fds(channel, 1, 1)
        found = socket.socket(fileno=listener)
        found.setblocking(False)
        return found

    async def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        time_s: float | None = None,
        cpu_s: float | None = None,
        folder: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Result:
        """Execute a program. All that earlier calls left running is ended first, a session too.

        Args:
            files: contents by path, written below /tmp before.
            time_s: seconds that it may take; None: the limit of the box.
            cpu_s: seconds of processor time that it may take; None: the limit of the box alone.
            folder: where it runs. None: /tmp.
            variables: variables that it gets besides those of every program in a box.

        Raises:
            SandboxError: the box is gone, or the files cannot be written.
        """
        files = files or {}
        order = {"do": "run", "argv": list(argv), "files": list(files)}
        order |= {"folder": folder, "variables": dict(variables or {})}
        return await self._call(order, (*files.values(), stdin), time_s, cpu_s)

    async def script(
        self,
        code: str,
        *,
        files: Mapping[str, bytes] | None = None,
        stdin: bytes = b"",
        time_s: float | None = None,
        cpu_s: float | None = None,
    ) -> Result:
        """Run Python code as a program of its own, in an interpreter that is already up; as run()."""
        files = files or {}
        parts = (*files.values(), code.encode(errors="replace"), stdin)
        return await self._call({"do": "script", "files": list(files)}, parts, time_s, cpu_s)

    async def python(
        self,
        code: str,
        *,
        time_s: float | None = None,
        cpu_s: float | None = None,
        echo: bool = True,
        answer: Answerer | None = None,
        remote: Sequence[str] = (),
    ) -> Result:
        """Run Python code in the session of the box, which begins with the first such call.

        At the time limit the code gets KeyboardInterrupt; if it goes on, the session is ended.

        Args:
            echo: print the value of a last expression, as the REPL does.
            remote: names of functions that live elsewhere; `answer` is asked what they return.

        Raises:
            SandboxError: the box is gone.
        """
        order = {"do": "python", "echoes": echo, "remote": list(remote)}
        return await self._call(order, (code.encode(errors="replace"),), time_s, cpu_s, answer)

    async def call(
        self, question: Mapping[str, Any], *, time_s: float | None = None, cpu_s: float | None = None
    ) -> Result:
        """Call a function of the session, see inside/session.py; `done` has its answer.

        Raises:
            SandboxError: the box is gone.
        """
        names = ("how", "path", "args", "kwargs")
        order = {"do": "call", **{name: question[name] for name in names}}
        return await self._call(order, (), time_s, cpu_s)

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Write files below /tmp.

        Raises:
            SandboxError: the box is gone, a path is no ordinary file, or there is no room.
        """
        await self._ask({"do": "write", "files": list(files)}, tuple(files.values()), _GRACE_S)

    async def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """The content of a file in /tmp.

        Raises:
            SandboxError: the box is gone, there is no such file, or it has more bytes than `limit`.
        """
        frame = await self._ask({"do": "read", "path": path, "limit": limit}, (), _GRACE_S)
        return b"".join(frame.parts)[: limit + 1]

    async def close(self) -> None:
        """End the box, and wait until nothing of it runs. A second call does nothing."""
        self._why_ended = self._why_ended or "it was closed"
        if self._started.listeners is not None:
            self._started.listeners.close()
        process = self._started.process
        if process is not None and process.poll() is None:
            process.kill()
        await self._first_process_is_gone()
        while process is not None and process.poll() is None:
            await asyncio.sleep(0.001)
        if process is not None and process.stderr is not None:
            process.stderr.close()
        if self._started.folder:
            await asyncio.to_thread(remove_folder, self._started.folder)
            self._started.folder = None

    async def __aenter__(self) -> "Box":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        order: Mapping[str, Any],
        parts: tuple[bytes, ...],
        time_s: float | None,
        cpu_s: float | None,
        answer: Answerer | None = None,
    ) -> Result:
        time_s = self.limits.time_s if time_s is None else time_s
        frame = await self._ask({**order, "time_s": time_s, "cpu_s": cpu_s}, parts, time_s + _GRACE_S, answer)
        try:
            return read_result(frame)
        except FrameError as error:
            raise await self._end(f"it answered nonsense: {error}") from None

    async def _ask(
        self,
        order: Mapping[str, Any],
        parts: tuple[bytes, ...],
        time_s: float,
        answer: Answerer | None = None,
    ) -> Frame:
        async with self._lock:
            if self._why_ended:
                raise SandboxError(f"the box is gone: {self._why_ended}")
            frame = await self._exchange(order, parts, time_s, answer)
        if frame.header.get("ok") is not True:
            raise SandboxError(f"the box refused a call: {str(frame.header.get('error'))[:1000]}")
        return frame

    async def _exchange(
        self, order: Mapping[str, Any], parts: tuple[bytes, ...], time_s: float, answer: Answerer | None
    ) -> Frame:
        try:
            async with asyncio.timeout(time_s):
                await self._send(pack(order, *parts))
                while True:
                    frame = await self._receive()
                    if "ask" not in frame.header or answer is None:
                        return frame
                    await self._send(pack({"answer": await answer(frame.header["ask"])}))
        except TimeoutError:
            raise await self._end(f"it did not answer within {time_s:g} s") from None
        except FrameError as error:
            raise await self._end(f"it answered nonsense: {error}") from None
        except (EOFError, OSError):
            raise await self._end(await self._last_words()) from None
        except BaseException:
            await self._end("a call was cancelled")
            raise

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._started.socket, data)

    async def _receive(self) -> Frame:
        loop = asyncio.get_running_loop()
        while not self._frames:
            data = await loop.sock_recv(self._started.socket, 1 << 16)
            if not data:
                raise EOFError
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    async def _first_process_is_gone(self) -> None:
        """Tell it to end, and wait until its end of the socket closes: nobody else holds it."""
        connection = self._started.socket
        try:
            async with asyncio.timeout(_GRACE_S):
                connection.shutdown(socket.SHUT_WR)
                while await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
                    pass
        except (OSError, TimeoutError):
            pass
        connection.close()

    async def _last_words(self) -> str:
        """What the first process wrote before it ended."""
        process = self._started.process
        if process is None:
            return "it ended"
        process.kill()
        _, errors = await asyncio.to_thread(process.communicate)
        lines = errors.decode(errors="replace").strip().splitlines()
        return f"it ended: {lines[-1]}" if lines else "it ended"

    async def _end(self, why: str) -> SandboxError:
        self._why_ended = self._why_ended or why
        await self.close()
        return SandboxError(f"a box of kind {self.kind} is gone: {self._why_ended}")


def read_result(frame: Frame) -> Result:
    """The result in a frame.

    Raises:
        FrameError: it has another form.
    """
    header = frame.header
    code, seconds, done = header.get("code"), header.get("seconds"), header.get("done")
    passed, cpu_s = header.get("ended"), header.get("cpu_s")
    if (
        type(code) is not int
        or type(seconds) is not float
        or type(cpu_s) is not float
        or len(frame.parts) != 2
    ):
        raise FrameError("a result without code, seconds and output")
    if passed not in (None, "error", *_LIMITS) or not isinstance(done, dict | None):
        raise FrameError("a result of another form")
    ended: Ended = passed or ("exit" if code == 0 else "signal" if code < 0 else "error")
    if ended == "exit" and done is not None and done.get("ok") is not True:
        ended = "error"
    if ended == "exit" and header.get("lost") is True:
        ended = "error"  # the program ended its session
    return Result(ended, code, *frame.parts, seconds, cpu_s, done, lost=header.get("lost") is True)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def remove_folder(folder: str) -> None:
    """Remove what a program left. rm takes folders that are nested deeper than Python's recursion goes."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
