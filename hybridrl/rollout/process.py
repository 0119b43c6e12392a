"""An engine in processes of its own, as its owner sees it: answers, shared parameters, weight swaps.

The host process belongs to a kind of engine and may run in another Python environment. This module imports no
engine and works in any thread, with or without an event loop, and in a Ray actor. When a process of the
engine dies, calls raise an EngineError with the last lines of its log.

Waits: generate() on the engine, begin_swap() on the requests that run, shutdown() on the processes.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hybridrl.batch import TokenBlock
from hybridrl.errors import ConfigError, DeadlineError, EngineError, EngineLostError, LayoutError
from hybridrl.hosts.interpreter import environment_of
from hybridrl.layout.base import Layout
from hybridrl.models import spec
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.answers import answer_all, refuse_other_versions
from hybridrl.rollout.base import Answer, EngineSetup, Request
from hybridrl.rollout.channel import Caller
from hybridrl.rollout.lots import Outbox
from hybridrl.rollout.session import EngineSession
from hybridrl.types import PolicyVersion, Prompt, Sampling, Trajectory

_EXIT_S = 30.0
_REAP_S = 5.0
_LAST_LINES = 12
_REASON = re.compile(r"^(\w+\.)*\w+(Error|Exception|Interrupt)\b|^\S+ was ended by SIG")
"""Matches the last line of a traceback, and what a host says of its children (hosting.py)."""

_SHARED_MEMORY = Path("/dev/shm")

_OF_PROCESS = ("torch_{pid}_*", "sem.loky-{pid}-*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProgram:
    """What a kind of engine starts."""

    module: str
    """Module whose main(file_descriptor) is the host process. The descriptor is its end of the pipe."""

    arguments: dict[str, Any]
    """Arguments of the engine, which the host gets in its launch spec."""

    environment: Callable[[str], Mapping[str, str]]
    """Returns environment variables in addition to those of this process. The argument is the folder of the
    launch spec."""

    python: str = sys.executable
    """Interpreter of the host process."""

    noise: str = ""
    """Text of log lines that error messages leave out; "" if there is none."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Message to the host process at its start."""

    arguments: dict[str, Any]
    """Arguments of the engine."""

    folder: str
    """Folder for temporary files, which the host removes in the end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Message of the host process once the engine serves."""

    name: str
    """Name of this engine in the names of its files."""

    pids: list[int]
    """Ids of the engine's processes other than the host."""

    files: tuple[str, ...] = ()
    """Patterns of its files in shared memory, other than those of leftovers_of."""

    with_stacks: tuple[int, ...] = ()
    """Ids of its processes that write their stacks at a signal (hosts/stacks.py), besides the host."""


class EngineProcess:
    """Implements Engine of rollout/base.py, which has the contracts of the methods."""

    def __init__(self, setup: EngineSetup, program: HostProgram) -> None:
        """Start the engine and wait until it serves.

        Raises: the errors of EngineKind.open.
        """
        self.setup, self._program = setup, program
        self.session = EngineSession(setup.version, name=Path(setup.log_path).stem)
        self._paused = False
        self._ready = Ready("", [])
        self._folder = tempfile.mkdtemp(prefix="hybridrl-engine-")
        try:
            self._process, connection = _spawn(program, self._folder, Path(setup.log_path))
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            what = f"{self.session.name} cannot run {program.python}: {error.strerror}"
            raise EngineError(what, fix="rollout.python names an interpreter on every node") from None
        try:
            self._ready = self._wait_until_up(connection)
        except BaseException:
            self._end_processes()
            raise
        self._caller = Caller(connection, self._why_gone)
        self._outbox = Outbox(self._caller)

    @property
    def process_ids(self) -> list[int]:
        """Ids of all processes of the engine; the first is the host."""
        return [self._process.pid, *self._ready.pids]

    @property
    def stack_files(self) -> dict[int, str]:
        """Process id -> file, of the processes that write their stacks at a signal."""
        return dict.fromkeys((self._process.pid, *self._ready.with_stacks), self.setup.log_path)

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], TokenBlock]:
        version = self.session.require_serving()
        ask = self._outbox.request
        return await answer_all(ask, prompts, sampling, version, name=self.session.name)

    async def request(self, request: Request) -> Answer:
        oldest, session = self.session.require_serving(), self.session
        answer = await self._outbox.request(request)
        refuse_other_versions(answer, oldest=oldest, newest=session.version, name=session.name)
        return answer

    async def abort(self, ids: Sequence[str]) -> None:
        self._outbox.flush()
        await self._call("abort", list(ids))

    async def pause(self, *, keep_cache: bool = False) -> float | None:
        self._paused = True
        return await self._call("pause", keep_cache)

    async def continue_(self) -> None:
        self.session.require_serving()
        self._paused = False
        await self._call("continue_")

    async def release_cache(self) -> None:
        await self._running_to_end()
        await self._call("release_cache")

    async def resume_cache(self) -> None:
        await self._call("resume_cache")

    def export_parameters(self) -> list[dict[str, SharedTensor]]:
        return self._caller.call("export_parameters").result()

    async def probe_loader(self, layout: Layout) -> LayoutError | None:
        if len(self._outbox):
            raise EngineError(f"{self.session.name} answers requests; its loader is probed before the first")
        try:
            await self._call("probe_loader", layout)
        except LayoutError as difference:
            return difference
        return None

    async def begin_swap(self, version: PolicyVersion) -> None:
        self.session.quiesce(version)
        await self._running_to_end()
        self.session.begin_write()

    async def checksums(self) -> list[dict[str, int]]:
        return await self._call("checksums")

    async def load_bucket(self, bucket: Bucket, buffer: SharedTensor, *, first: bool, last: bool) -> None:
        await self._call("load_bucket", bucket, buffer, first, last)

    async def commit_swap(self, version: PolicyVersion) -> None:
        self.session.commit(version)
        await self._call("set_version", version)
        self.session.serve()

    def shutdown(self) -> None:
        self._caller.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_S)
        self._end_processes()

    async def _call(self, method: str, *args: Any) -> Any:
        return await asyncio.wrap_future(self._caller.call(method, *args))

    async def _running_to_end(self) -> None:
        """Wait until no request runs. A paused engine's requests stay, and compute nothing."""
        if not self._paused:
            await self._outbox.empty()

    def _wait_until_up(self, connection: Connection) -> Ready:
        limit = self.setup.start_timeout_s
        if not connection.poll(limit):
            raise DeadlineError(f"{self.session.name} was not up after {limit:.0f} s", where=self._log())
        try:
            return connection.recv()
        except (EOFError, OSError):
            raise self._why_gone() from None

    def _why_gone(self) -> EngineLostError:
        name, number = self.session.name, self._signal()
        if number is not None:
            fix = "dmesg tells whether memory ran out" if number == signal.SIGKILL else ""
            return EngineLostError(f"{name} was ended by {number.name}", where=self._log(), fix=fix)
        reasons = [line for line in self._lines() if _REASON.match(line)]
        reason = reasons[-1] if reasons else "it gave no reason"
        return EngineLostError(f"{name} ended: {reason}", where=self._log())

    def _signal(self) -> signal.Signals | None:
        """The signal that ended the host process; None: it ended by itself, or closes its pipe and lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        code = self._process.returncode
        return signal.Signals(-code) if code is not None and code < 0 else None

    def _log(self) -> str:
        return "\n".join([f"{self.setup.log_path} ends with", *self._lines()[-_LAST_LINES:]])

    def _lines(self) -> list[str]:
        lines = Path(self.setup.log_path).read_text(errors="replace").splitlines()
        noise = self._program.noise
        return [line for line in lines if line.strip() and not (noise and noise in line)]

    def _end_processes(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._remove_leftovers(self._ready)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_leftovers(self, ready: Ready) -> None:
        """Unlink what the killed processes of the engine leave in shared memory."""
        remove_leftovers([*leftovers_of(ready.pids), *ready.files])


def refuse_too_long(setup: EngineSetup) -> None:
    """Check that prompt and answer fit into the model's positions.

    Raises:
        ModelError: setup.model_folder holds no supported model.
        ConfigError: prompt and answer together may be longer than the model's positions.
    """
    positions = spec.read(setup.model_folder).max_positions
    if setup.max_prompt_tokens + setup.max_response_tokens > positions:
        raise ConfigError(
            f"a prompt of {setup.max_prompt_tokens} tokens and an answer of {setup.max_response_tokens} are "
            f"longer than the {positions} positions of {setup.model_folder}",
            fix=f"rollout.max_response_tokens = {positions - setup.max_prompt_tokens} or less",
        )


def _spawn(program: HostProgram, folder: str, log_path: Path) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start the host process in a new session, so that a signal to its group reaches all of its processes."""
    # -c and not -m, because spawned processes would import the main module again.
    ours, theirs = socket.socketpair()
    code = f"from {program.module} import main; main({theirs.fileno()})"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists():  # of an engine whose place this one takes
        log_path.replace(log_path.with_suffix(".before.log"))
    with theirs, open(log_path, "wb") as log:
        process = subprocess.Popen(
            [program.python, "-c", code],
            env=environment_of(program.python, folder) | dict(program.environment(folder)),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    connection.send(LaunchSpec(program.arguments, folder))
    return process, connection


def leftovers_of(pids: Iterable[int]) -> list[str]:
    """Patterns of the files that killed processes with these ids leave in shared memory."""
    return [pattern.format(pid=pid) for pid in pids for pattern in _OF_PROCESS]


def remove_leftovers(patterns: Iterable[str]) -> None:
    """Unlink files in shared memory. Processes that have them mapped keep them until they unmap them."""
    for pattern in patterns:
        for path in _SHARED_MEMORY.glob(pattern):
            path.unlink(missing_ok=True)
