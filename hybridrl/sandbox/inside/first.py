"""The first process of a box: it gives up its rights, then runs what its owner asks for, one call at a time.

    owner --socket--> this process: forks a child per program, watches its limits, answers with what it wrote

It waits for its owner, and during a call for the child, the child's pipes and the owner's end; a child that
passes a limit is killed. When the owner's end closes, it ends, and with it everything in its PID namespace.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from hybridrl.sandbox.inside import confine, frames
from hybridrl.sandbox.inside.filter import box_filter
from hybridrl.sandbox.inside.limits import Limits
from hybridrl.sandbox.inside.programs import (
    Pipes,
    Setting,
    empty_folder,
    read_file,
    start_program,
    start_python,
    start_session,
    write_files,
)
from hybridrl.sandbox.inside.session import FRAME_BYTES, run_code, serve
from hybridrl.sandbox.inside.supervise import Children, Guard, Output, drain, poll

_INTERRUPT_S = 0.5
"""Seconds that a session has to end a call after KeyboardInterrupt; then it is killed."""

_TICK_S = 0.02
OWNER_BYTES = 64 << 20
"""Bytes of a frame from the owner: code, files and stdin."""


class OwnerGone(Exception):
    """The owner's end of the socket is closed."""


def main(owner: int) -> None:
    """Serve the owner until its end closes. The first frame says how to confine this process."""
    reader = frames.FrameReader(OWNER_BYTES)
    order = frames.receive(owner, reader)
    if order is None:
        return
    try:
        first = FirstProcess(owner, reader, order.header)
        first.start_session()  # most boxes serve one: it is up before the first call
        if order.header["listen"]:
            _hand_out_listener(*order.header["listen"])
    except (OSError, ValueError) as error:
        frames.send(owner, {"ready": False, "error": str(error)[:1000]})
        return
    frames.send(owner, {"ready": True})
    try:
        while (order := frames.receive(owner, reader)) is not None:
            header, *parts = first.obey(order.header, order.parts)
            frames.send(owner, header, *parts)
    except (OwnerGone, BrokenPipeError, ConnectionResetError):
        pass
    first.end()


class FirstProcess:
    def __init__(self, owner: int, reader: frames.FrameReader, order: Mapping[str, Any]) -> None:
        """
        Raises:
            OSError: the kernel refuses to confine this process.
        """
        self._owner, self._reader = owner, reader
        lone = order["kind"] == "landlock"
        self._setting = Setting(
            Limits(**order["limits"]),
            order["folder"],
            tuple(order["packages"]),
            lone=lone,
            other_processes=order["other_processes"],
        )
        self._children = Children(owns_all=not lone)
        self._session: _SessionProcess | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _confine(order, lone)
        os.chdir(self._setting.folder)

    def obey(self, order: Mapping[str, Any], parts: tuple[bytes, ...]) -> tuple[Any, ...]:
        """Carry out an order; returns the header and the parts of the answer."""
        do = order["do"]
        try:
            if do in ("write", "run", "script"):
                names = order["files"]
                write_files(dict(zip(names, parts, strict=False)), self._setting.folder)
                parts = parts[len(names) :]
            if do == "write":
                return ({"ok": True},)
            if do == "read":
                path = os.path.join(self._setting.folder, order["path"])
                return {"ok": True}, read_file(path, order["limit"])
        except (OSError, ValueError) as error:
            return ({"ok": False, "error": str(error)[:1000]},)
        if do == "python" or do == "call":
            return self._in_session(order, parts)
        return self._program(order, parts)

    def start_session(self) -> "_SessionProcess":
        """An interpreter that waits for its first command."""
        pipes = start_session(self._setting, serve)
        self._children.add(pipes.pid)
        self._session = _SessionProcess(pipes, self._outputs(pipes))
        return self._session

    def end(self) -> None:
        """Kill what still runs, and remove what it wrote: an owner that was killed cannot do it."""
        self._end_session()
        if self._setting.lone:
            empty_folder(self._setting.folder)

    def _program(self, order: Mapping[str, Any], parts: tuple[bytes, ...]) -> tuple[Any, ...]:
        self._end_session()
        began = time.monotonic()
        if order["do"] == "run":
            folder, variables = order.get("folder") or self._setting.folder, order.get("variables") or {}
            pipes, stdin = start_program(order["argv"], self._setting, folder, variables), parts[0]
        else:
            pipes, stdin = start_python(self._setting, _script(parts[0])), parts[1]
        self._children.add(pipes.pid)
        outputs = self._outputs(pipes)
        guard = self._guard(pipes.pid, outputs, order)
        ended, status, unsent, stdin_fd = None, None, memoryview(stdin), pipes.stdin
        while ended is None and (status := self._children.status(pipes.pid)) is None:
            if not unsent and stdin_fd >= 0:
                os.close(stdin_fd)
                stdin_fd = -1
            writes = [stdin_fd] if stdin_fd >= 0 else []
            ready = poll(outputs, writes, [self._owner], _TICK_S)
            if self._owner in ready:
                raise OwnerGone
            if stdin_fd in ready:
                unsent = _write(stdin_fd, unsent)
            overdue = time.monotonic() - began > order["time_s"]
            ended = "time" if overdue else guard.passed()
        cpu_s = guard.cpu_s
        killed = self._children.end(pipes.pid)
        drain(outputs)
        ended = ended or ("output" if any(output.over for output in outputs) else None)
        for fd in (stdin_fd, pipes.stdout, pipes.stderr):
            if fd >= 0:
                os.close(fd)
        return self._answer(ended, killed if status is None else status, began, cpu_s, outputs)

    def _in_session(self, order: Mapping[str, Any], parts: tuple[bytes, ...]) -> tuple[Any, ...]:
        session, began = self._session or self.start_session(), time.monotonic()
        self._children.signal(session.pipes.pid, signal.SIGCONT)
        guard = self._guard(session.pipes.pid, session.outputs, order)
        command = dict(order) | {"do": "exec" if order["do"] == "python" else "call"}
        session.command(frames.pack(command, *parts))
        ended, status = self._watch(session, guard, began, order["time_s"])
        cpu_s = guard.cpu_s
        if session.done is not None:
            self._children.signal(session.pipes.pid, signal.SIGSTOP)  # no work between the calls
        else:
            killed = self._children.end(session.pipes.pid)
            status = killed if status is None else status
        drain(session.outputs)
        answer = self._answer(ended, status or 0, began, cpu_s, session.outputs)
        answer[0].update(done=session.done, lost=session.done is None)
        if session.done is None:
            session.pipes.close()
            self._session = None
        session.done = None
        return answer

    def _watch(
        self, session: "_SessionProcess", guard: Guard, began: float, time_s: float
    ) -> tuple[str | None, int | None]:
        """Wait until the session answers, ends, or passes a limit; returns the limit and its wait status."""
        ended, status, deadline = None, None, began + time_s
        while session.done is None and (status := self._children.status(session.pipes.pid)) is None:
            ready = poll(session.outputs, session.writes, [session.pipes.results, self._owner], _TICK_S)
            if self._owner in ready:
                raise OwnerGone
            session.go_on(ready)
            if session.question is not None:
                session.answer(self._ask_owner(session.question))
            passed = guard.passed()
            if passed:
                return passed, None
            if session.broken:
                return "error", None
            if time.monotonic() > deadline and session.done is None:
                if ended:
                    return ended, None
                ended, deadline = "time", time.monotonic() + _INTERRUPT_S
                os.kill(session.pipes.pid, signal.SIGINT)
        return ended, status

    def _ask_owner(self, question: Any) -> Any:
        frames.send(self._owner, {"ask": question})
        answer = frames.receive(self._owner, self._reader)
        if answer is None:
            raise OwnerGone
        return answer.header["answer"]

    def _outputs(self, pipes: Pipes) -> tuple[Output, Output]:
        limit = self._setting.limits.output_bytes
        return Output(pipes.stdout, limit), Output(pipes.stderr, limit)

    def _guard(self, pid: int, outputs: tuple[Output, Output], order: Mapping[str, Any]) -> Guard:
        folder = self._setting.folder if self._setting.lone else None
        return Guard(self._setting.limits, outputs, pid, order.get("cpu_s"), folder)

    def _answer(
        self, ended: str | None, status: int, began: float, cpu_s: float, outputs: tuple[Output, Output]
    ) -> tuple[Any, ...]:
        code = os.waitstatus_to_exitcode(status)
        ended = ended or {-signal.SIGXCPU: "cpu", -signal.SIGXFSZ: "disk"}.get(code)
        if ended == "disk" and self._setting.lone:
            empty_folder(self._setting.folder)  # else the next call would end at once
        seconds = time.monotonic() - began
        header = {"ok": True, "ended": ended, "code": code, "seconds": seconds, "cpu_s": cpu_s}
        return header, outputs[0].take(), outputs[1].take()

    def _end_session(self) -> None:
        if self._session is not None:
            self._children.end(self._session.pipes.pid)
            self._session.pipes.close()
            self._session = None


class _SessionProcess:
    """This side of a session: what is still to be sent to it, and what it has answered."""

    def __init__(self, pipes: Pipes, outputs: tuple[Output, Output]) -> None:
        self.pipes, self.outputs = pipes, outputs
        self.done: dict[str, Any] | None = None
        self.question: Any = None
        self.broken = False
        self._reader = frames.FrameReader(FRAME_BYTES)
        self._unsent = memoryview(b"")

    @property
    def writes(self) -> list[int]:
        return [self.pipes.commands] if self._unsent else []

    def command(self, data: bytes) -> None:
        self._unsent = memoryview(data)

    def answer(self, answer: Any) -> None:
        self.question = None
        self.command(frames.pack({"answer": answer}))

    def go_on(self, ready: set[int]) -> None:
        """Send and read what is possible now."""
        if self.pipes.commands in ready:
            self._unsent = _write(self.pipes.commands, self._unsent)
        if self.pipes.results in ready:
            self._read()

    def _read(self) -> None:
        try:
            for frame in self._reader.feed(os.read(self.pipes.results, 1 << 16)):
                if isinstance(frame.header.get("done"), dict):
                    self.done = frame.header["done"]
                elif "ask" in frame.header:
                    self.question = frame.header["ask"]
        except BlockingIOError:
            pass
        except frames.FrameError:
            self.broken = True


def _confine(order: Mapping[str, Any], lone: bool) -> None:
    confine.drop_bounding_set()
    if order["user"] is not None:
        confine.become(order["user"])
    confine.drop_capabilities()
    confine.seal()
    if lone:
        confine.apply_landlock(order["read"], [order["folder"]], order["devices"])
        confine.apply_filter(box_filter())
    else:
        confine.die_with_parent()


def _hand_out_listener(channel: int, port: int) -> None:
    """Give the owner a socket that listens on this box's loopback: nobody outside reaches that network, and
    nobody inside reaches another one.

    Raises:
        OSError: the port is taken, or there is no loopback.
    """
    with socket.socket(fileno=channel) as owner, socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        socket.send_fds(owner, [b"l"], [listener.fileno()])


def _script(code: bytes) -> Any:
    def body() -> None:
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        sys.argv = ["main.py"]
        if not run_code(code.decode(errors="replace"), main.__dict__, "main.py", echo=False):
            raise SystemExit(1)

    return body


def _write(fd: int, data: memoryview) -> memoryview:
    """Write what fits; returns the rest, nothing if nobody reads any more."""
    try:
        return data[os.write(fd, data[: 1 << 16]) :]
    except BlockingIOError:
        return data
    except (BrokenPipeError, ConnectionResetError):
        return memoryview(b"")
