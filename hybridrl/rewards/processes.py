"""The owner's side of scoring processes: starts them, ends them, and says where one hangs and why one
died."""

import fcntl
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from hybridrl.errors import DeadlineError, HybridRLError, RewardError, WorkerError
from hybridrl.hosts.variables import child_environment, is_withheld
from hybridrl.rewards.answers import Loaded, read_loaded, read_pid, reader
from hybridrl.rewards.children import DUMP_SIGNAL, LOAD_LIMIT_S, SHARED_BYTES, Load, Progress, innermost
from hybridrl.sandbox.inside.frames import Frame, FrameError, FrameReader, pack

_BOOT = "import sys; fd, *sys.path = sys.argv[1:]; from hybridrl.rewards.children import main; main(int(fd))"
_DUMP_WAIT_S = 0.5
_END_WAIT_S = 5.0
_ANSWER_S = 120.0
"""Seconds within which the fork server forks or ends a child, and within which a child takes a job."""

_F_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # no further seals, no shrinking, no growing


@dataclass(slots=True)
class Child:
    """A scoring process. It runs code of a user: nothing that it does keeps its owner waiting."""

    pid: int
    jobs: socket.socket
    progress: Progress
    _reader: FrameReader = field(default_factory=reader)

    def send(self, job: Any) -> None:
        """
        Raises:
            OSError: it is gone, or does not take the job.
        """
        self._reader = reader()
        self.jobs.settimeout(_ANSWER_S)
        self.jobs.sendall(pack({}, pickle.dumps(job)))
        self.jobs.setblocking(False)

    def receive(self) -> Frame | None:
        """Its answer, once it has all come; None before.

        Raises:
            EOFError: it is gone.
            FrameError: what came is no frame.
        """
        while True:
            try:
                data = self.jobs.recv(1 << 16)
            except BlockingIOError:
                return None
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            for frame in self._reader.feed(data):
                return frame

    def close(self) -> None:
        """Close the owner's connections; the fork server ends the process."""
        self.jobs.close()
        self.progress.close()

    def stack(self) -> str:
        """The place it executes now, as "file:line in function"; empty if it does not answer within half a
        second."""
        earlier, text = len(self.progress.stack()), ""
        try:
            os.kill(self.pid, DUMP_SIGNAL)
        except ProcessLookupError:
            return ""
        give_up = time.monotonic() + _DUMP_WAIT_S
        while not text.endswith("\n") and time.monotonic() < give_up:
            time.sleep(0.01)
            text = self.progress.stack()[earlier:]
        return stack_place(text)


class ForkServer:
    """The process that loaded the reward and forks children that score with it.

    It is started with subprocess and not with multiprocessing, which would run the main module of a Ray
    worker again.
    """

    def __init__(self, load: Load, *, variables: Sequence[str] = ()) -> None:
        """
        Args:
            variables: environment variables that it gets beyond those of hosts/variables.py.

        Raises:
            ConfigError: no such reward, options that it does not take, or a variable that is not set.
            RewardError: its module raises, or ends the process, while it is imported.
            DeadlineError: it is still being imported after LOAD_LIMIT_S.
        """
        self.name, self._variables = load.name, tuple(variables)
        environment = child_environment(variables, key="reward.variables", where=load.where)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the owner
            )
        self._control, self._reader = ours, reader()
        try:
            self.loaded = self._load(load)
        except BaseException:
            self.close()
            raise

    def _load(self, load: Load) -> Loaded:
        try:
            self._send(load)
            answer = read_loaded(self._receive(LOAD_LIMIT_S))
        except TimeoutError:
            raise DeadlineError(
                f"reward {load.name} was not imported within {LOAD_LIMIT_S} s", where=load.where
            ) from None
        except (EOFError, ConnectionError, FrameError) as error:
            reason = self._reason(error)
            raise RewardError(f"reward {load.name} cannot be loaded: {reason}", where=load.where) from error
        if isinstance(answer, HybridRLError):
            raise with_hint(answer, self._variables)
        return answer

    def fork(self) -> Child:
        """A new child, ready for jobs."""
        shared = sealed_memory("hybridrl-reward", SHARED_BYTES)
        ours, theirs = socket.socketpair()
        child = Child(0, ours, Progress(shared))
        try:
            with theirs:
                child.pid = self._ask("fork", theirs.fileno(), shared)
            if parent_of(child.pid) not in (self._process.pid, None):
                what = f"the fork server of reward {self.name} names a process that is not its own"
                raise WorkerError(what)
        except BaseException:
            child.close()
            raise
        return child

    def end(self, child: Child) -> int:
        """Kill a child and all that it started; returns its exit code, that of its death if it was dead
        before."""
        status = self._ask(child.pid)
        child.close()
        return os.waitstatus_to_exitcode(status)

    def _ask(self, order: str | int, *descriptors: int) -> int:
        try:
            self._send(order, *descriptors)
            return read_pid(self._receive(_ANSWER_S))
        except (EOFError, OSError, FrameError) as error:
            reason = self._reason(error)
            raise WorkerError(f"the scoring processes of reward {self.name} are gone: {reason}") from error

    def _send(self, order: Any, *descriptors: int) -> None:
        self._control.settimeout(_ANSWER_S)
        socket.send_fds(self._control, [pack({}, pickle.dumps(order))], descriptors)

    def _receive(self, limit_s: float) -> Frame:
        """
        Raises:
            TimeoutError: there is no whole answer within the limit.
            EOFError: it is gone.
            FrameError: what came is no frame.
        """
        give_up = time.monotonic() + limit_s
        while (left_s := give_up - time.monotonic()) > 0:
            if not wait([self._control], left_s):  # select() takes no descriptor above 1023
                break
            data = self._control.recv(1 << 16)
            if not data:
                raise EOFError
            for frame in self._reader.feed(data):
                return frame
        raise TimeoutError(f"no answer within {limit_s:g} s")

    def _reason(self, error: Exception) -> str:
        """Why it is gone: how its process ended, or what it did; then it is ended."""
        if isinstance(error, EOFError | ConnectionError):
            return exit_reason(self._process.wait())
        self._kill()
        return f"it answered nonsense: {error}" if isinstance(error, FrameError) else str(error)

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the fork server and every child. A second call does nothing."""
        self._control.close()
        try:
            self._process.wait(timeout=_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self._kill()


def with_hint(error: HybridRLError, variables: Sequence[str]) -> HybridRLError:
    """The error, with the fix if a process missed an environment variable that its owner has."""
    missed = re.search(r"KeyError\b[^']*: '(\w+)'", error.what)
    if missed and is_withheld(missed[1], variables):
        error.fix = f"list it: reward.variables: [{', '.join((*variables, missed[1]))}]"
    return error


def sealed_memory(name: str, num_bytes: int) -> int:
    """Shared memory whose size nobody can change: a reader of memory that another process has cut short would
    be ended by SIGBUS."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd


def parent_of(pid: int) -> int | None:
    """The parent of a process; None if there is no such process, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def exit_reason(code: int) -> str:
    """The meaning of a return code of subprocess, in words."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process exited with code {code}"


def stack_place(text: str) -> str:
    """The place in a stack that faulthandler wrote."""
    frames: list[Any] = re.findall(r'^  File "(.+)", line (\d+) in (.+)$', text, re.MULTILINE)
    return innermost([(file, int(line), name) for file, line, name in frames])
