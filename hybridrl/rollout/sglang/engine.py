"""One SGLang engine as its owner sees it: answers to prompts, shared parameters, weight swaps.

The engine runs in separate processes (host.py), so this module imports no sglang and works in any thread,
with or without an event loop, and in a Ray actor. When a process of the engine dies, calls raise an
EngineError with the last lines of its log.

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
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.batch import TokenBlock
from hybridrl.errors import ConfigError, DeadlineError, EngineError, LayoutError
from hybridrl.layout.base import Layout
from hybridrl.models import spec
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Answer, EngineSetup, Request
from hybridrl.rollout.session import EngineSession
from hybridrl.rollout.sglang.arguments import engine_arguments, process_environment
from hybridrl.rollout.sglang.channel import Caller
from hybridrl.types import Finish, PolicyVersion, Prompt, Sampling, Trajectory

_EXIT_S = 30.0
_LAST_LINES = 12
_NOISE = "Ignore import error when loading"
"""SGLang prints this for every model without CUDA kernels; error messages leave such lines out."""

_REASON = re.compile(r"^(\w+\.)*\w+(Error|Exception|Interrupt)\b")
"""Matches the last line of a traceback."""

_SHARED_MEMORY = Path("/dev/shm")

_OF_PROCESS = ("torch_{pid}_*", "sem.loky-{pid}-*", "sgl_shm_*_{pid}_*")
_OF_ENGINE = ("sglang_loads_{name}_*",)


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Message to the host process at its start."""

    arguments: dict[str, Any]
    """Keyword arguments of sglang.Engine."""

    folder: str
    """Folder for temporary files, which the host removes in the end."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Message of the host process once the engine serves."""

    name: str
    """Name of this engine in the names of SGLang's files."""

    pids: list[int]
    """Process ids of the schedulers."""


class SGLangEngine:
    """Implements Engine of rollout/base.py, which has the contracts of the methods."""

    def __init__(self, setup: EngineSetup) -> None:
        """Start the engine and wait until it serves, which takes 10 to 20 seconds for a small model.

        Raises: the errors of EngineKind.open.
        """
        arguments = _arguments(setup)
        self.setup = setup
        self.session = EngineSession(setup.version, name=Path(setup.log_path).stem)
        self._running: set[Future[Any]] = set()
        self._paused = False
        self._ready = Ready("", [])
        self._folder = tempfile.mkdtemp(prefix="hybridrl-engine-")
        self._process, connection = _spawn(LaunchSpec(arguments, self._folder), setup, Path(setup.log_path))
        try:
            self._ready = self._wait_until_up(connection)
        except BaseException:
            self._end_processes()
            raise
        self._caller = Caller(connection, self._why_gone)

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], TokenBlock]:
        version = self.session.require_serving()
        block, finish = await self._answered(
            "generate", [prompt.token_ids for prompt in prompts], sampling, version
        )
        rows = iter(_trajectories(block, finish, version))
        return [[next(rows) for _ in range(sampling.num_samples)] for _ in prompts], block

    async def request(self, request: Request) -> Answer:
        self.session.require_serving()
        return await self._answered("request", request)

    async def abort(self, ids: Sequence[str]) -> None:
        await self._call("abort", list(ids))

    async def pause(self) -> None:
        self._paused = True
        await self._call("pause")

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
        if self._running:
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

    async def _answered(self, method: str, *args: Any) -> Any:
        """Call a method that samples; it counts as running until it returns."""
        future = self._caller.call(method, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)

    async def _running_to_end(self) -> None:
        """Wait until no request runs. A paused engine's requests do not end, and hold no cache."""
        while self._running and not self._paused:
            ends = [asyncio.wrap_future(future) for future in tuple(self._running)]
            await asyncio.gather(*ends, return_exceptions=True)

    def _wait_until_up(self, connection: Connection) -> Ready:
        limit = self.setup.start_timeout_s
        if not connection.poll(limit):
            raise DeadlineError(f"{self.session.name} was not up after {limit:.0f} s", where=self._log())
        try:
            return connection.recv()
        except (EOFError, OSError):
            raise self._why_gone() from None

    def _why_gone(self) -> EngineError:
        reasons = [line for line in self._lines() if _REASON.match(line)]
        reason = reasons[-1] if reasons else "it gave no reason"
        return EngineError(f"{self.session.name} ended: {reason}", where=self._log())

    def _log(self) -> str:
        return "\n".join([f"{self.setup.log_path} ends with", *self._lines()[-_LAST_LINES:]])

    def _lines(self) -> list[str]:
        lines = Path(self.setup.log_path).read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and _NOISE not in line]

    def _end_processes(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        remove_leftovers(self._ready.pids, self._ready.name)
        shutil.rmtree(self._folder, ignore_errors=True)


def _arguments(setup: EngineSetup) -> dict[str, Any]:
    positions = spec.read(setup.model_folder).max_positions
    if setup.max_prompt_tokens + setup.max_response_tokens > positions:
        raise ConfigError(
            f"a prompt of {setup.max_prompt_tokens} tokens and an answer of {setup.max_response_tokens} are "
            f"longer than the {positions} positions of {setup.model_folder}",
            fix=f"rollout.max_response_tokens = {positions - setup.max_prompt_tokens} or less",
        )
    depending = engine_arguments(setup)
    model = {
        "model_path": setup.model_folder,
        "weight_version": str(setup.version),
        "enable_return_routed_experts": setup.returns_experts,
    }
    if setup.parts == 1:
        return depending | model
    return (
        depending
        | model
        | {"nnodes": setup.parts, "node_rank": setup.part, "dist_init_addr": setup.rendezvous}
    )


def _spawn(
    launch: LaunchSpec, setup: EngineSetup, log_path: Path
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start the host process in a new session, so that a signal to its group reaches all of its processes."""
    # -c and not -m, because spawned processes would import the main module again.
    ours, theirs = socket.socketpair()
    program = f"from hybridrl.rollout.sglang.host import main; main({theirs.fileno()})"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with theirs, open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=process_environment(setup.parallel.tp, setup.parts, launch.folder),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    connection.send(launch)
    return process, connection


def _trajectories(block: TokenBlock, finish: Sequence[Finish], version: PolicyVersion) -> list[Trajectory]:
    prompt_N = block.prompt_tokens_N.tolist()
    response_N = (np.diff(block.start_N) - block.prompt_tokens_N).tolist()
    return [
        Trajectory(row=i, prompt_tokens=p, response_tokens=r, trained_tokens=r, finish=f, version=version)
        for i, (p, r, f) in enumerate(zip(prompt_N, response_N, finish, strict=True))
    ]


def remove_leftovers(pids: Iterable[int], name: str) -> None:
    """Unlink the shared memory that killed processes of an engine leave behind.

    Processes that have it mapped keep it until they unmap it.

    Args:
        pids: ids of processes that have ended.
        name: SGLang's name of the engine; "" if the engine did not get that far.
    """
    patterns = [p.format(pid=pid) for pid in pids for p in _OF_PROCESS]
    if name:
        patterns += [p.format(name=name) for p in _OF_ENGINE]
    for pattern in patterns:
        for path in _SHARED_MEMORY.glob(pattern):
            path.unlink(missing_ok=True)
