"""The owner's side of scoring processes: starts them, ends them, and says where one hangs and why one
died."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any

from hybridrl.errors import DeadlineError, HybridRLError, RewardError, WorkerError
from hybridrl.rewards.children import (
    DUMP_SIGNAL,
    LOAD_LIMIT_S,
    SHARED_BYTES,
    Load,
    Loaded,
    Progress,
    innermost,
)

_BOOT = "import sys; fd, *sys.path = sys.argv[1:]; from hybridrl.rewards.children import main; main(int(fd))"
_DUMP_WAIT_S = 0.5
_END_WAIT_S = 5.0


@dataclass(slots=True)
class Child:
    """A scoring process."""

    pid: int
    jobs: Connection
    progress: Progress

    def close(self) -> None:
        """Close the owner's connections; the fork server ends the process."""
        self.jobs.close()
        self.progress.close()

    def stack(self) -> str:
        """The place it executes now, as "file:line in function"; empty if it does not answer within half a
        second."""
        earlier, text = len(self.progress.stack()), ""
        os.kill(self.pid, DUMP_SIGNAL)
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

    def __init__(self, load: Load) -> None:
        """
        Raises:
            ConfigError: no such reward, or options that it does not take.
            RewardError: its module raises, or ends the process, while it is imported.
            DeadlineError: it is still being imported after LOAD_LIMIT_S.
        """
        self.name = load.name
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the owner
            )
        self._control = Connection(ours.detach())
        try:
            self.loaded = self._load(load)
        except BaseException:
            self.close()
            raise

    def _load(self, load: Load) -> Loaded:
        try:
            self._control.send(load)
            if not self._control.poll(LOAD_LIMIT_S):
                raise DeadlineError(
                    f"reward {load.name} was not imported within {LOAD_LIMIT_S} s", where=load.where
                )
            answer: Loaded | HybridRLError = self._control.recv()
        except (EOFError, ConnectionError) as error:
            reason = exit_reason(self._process.wait())
            raise RewardError(f"reward {load.name} cannot be loaded: {reason}", where=load.where) from error
        if isinstance(answer, HybridRLError):
            raise answer
        return answer

    def fork(self) -> Child:
        """A new child, ready for jobs."""
        shared = os.memfd_create("hybridrl-reward")
        os.ftruncate(shared, SHARED_BYTES)
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask("fork", theirs.fileno(), shared)
        return Child(pid, Connection(ours.detach()), Progress(shared))

    def end(self, child: Child) -> str:
        """Kill a child and all that it started; returns how it died, also if it was dead before."""
        status = self._ask(child.pid)
        child.close()
        return exit_reason(os.waitstatus_to_exitcode(status))

    def _ask(self, order: str | int, *descriptors: int) -> int:
        try:
            self._control.send(order)
            for descriptor in descriptors:
                send_handle(self._control, descriptor, self._process.pid)
            return self._control.recv()
        except (EOFError, ConnectionError) as error:
            reason = exit_reason(self._process.wait())
            raise WorkerError(f"the scoring processes of reward {self.name} are gone: {reason}") from error

    def close(self) -> None:
        """End the fork server and every child. A second call does nothing."""
        self._control.close()
        try:
            self._process.wait(timeout=_END_WAIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def exit_reason(code: int) -> str:
    """The meaning of a return code of subprocess, in words."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process exited with code {code}"


def stack_place(text: str) -> str:
    """The place in a stack that faulthandler wrote."""
    frames: list[Any] = re.findall(r'^  File "(.+)", line (\d+) in (.+)$', text, re.MULTILINE)
    return innermost([(file, int(line), name) for file, line, name in frames])
