"""One SGLang engine as its owner sees it: answers to prompts, shared parameters, the swap of weights.

The engine runs in processes of its own (host.py), so this module imports no sglang and works in any thread,
with or without an event loop, and in a Ray actor. When a process of the engine dies, calls end with an
EngineError that shows the last lines of its log.

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
from collections.abc import Sequence
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
from hybridrl.rollout.session import EngineSession
from hybridrl.rollout.sglang import leftovers
from hybridrl.rollout.sglang.arguments import engine_arguments, process_environment
from hybridrl.rollout.sglang.channel import Caller
from hybridrl.types import Finish, PolicyVersion, Prompt, Sampling, Trajectory

_EXIT_S = 30.0
_LAST_LINES = 12
_NOISE = "Ignore import error when loading"
"""SGLang says so of every model without CUDA kernels. The log keeps it, an error message does not."""

_REASON = re.compile(r"^(\w+\.)*\w+(Error|Exception|Interrupt)\b")
"""Last line of a traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What an engine is started with."""

    model_folder: str
    """Hugging Face format; its weights are those of `version`."""

    log_path: str
    """File that takes everything the engine's processes print."""

    tp: int = 1
    ep: int = 1
    dp_attention: int = 1
    seed: int = 0
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    kv_cache_tokens: int | None = None
    """None: by memory_fraction on a GPU, 65536 on CPU."""

    memory_fraction: float = 0.8
    max_running_requests: int = 256
    version: PolicyVersion | None = 0
    """None: the weights are of no version, so that the engine serves only after its first swap."""

    start_timeout_s: float = 600.0
    returns_experts: bool = False
    """Blocks say which experts each token went to."""

    parts: int = 1
    """Of the engine, each on a node of its own with its share of the ranks. They start together."""

    part: int = 0
    """Which of them this is. The first answers; the others only start and end."""

    meet: str = ""
    """host:port of the first part, where several find each other; and the six ports that follow."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the host is told when it starts."""

    arguments: dict[str, Any]
    """Of sglang.Engine."""

    folder: str
    """For its temporary files; it removes it."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the host says once it is up."""

    name: str
    """What SGLang calls this engine in the names of its files."""

    pids: list[int]
    """Of the scheduler processes."""


class SGLangEngine:
    """A running engine. Any thread or loop may call generate(); one caller makes the swaps, in order."""

    def __init__(self, setup: EngineSetup) -> None:
        """Start the engine and wait until it serves: 10 to 20 seconds for a small model.

        Raises:
            ModelError: setup.model_folder holds no model that a table describes.
            ConfigError: a prompt and an answer together are longer than the model's positions.
            ResourceError: they are larger than the key-value cache.
            EngineError: it did not start; nothing of it is left behind.
            DeadlineError: it was not up after setup.start_timeout_s.
        """
        arguments = _arguments(setup)
        self.setup = setup
        self.session = EngineSession(setup.version, name=Path(setup.log_path).stem)
        self._running: set[Future[Any]] = set()
        self._started = Started("", [])
        self._folder = tempfile.mkdtemp(prefix="hybridrl-engine-")
        self._process, connection = _spawn(Order(arguments, self._folder), setup, Path(setup.log_path))
        try:
            self._started = self._wait_until_up(connection)
        except BaseException:
            self._end_processes()
            raise
        self._caller = Caller(connection, self._why_gone)

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling
    ) -> tuple[list[list[Trajectory]], TokenBlock]:
        """Answer prompts: token ids in, token ids out.

        Args:
            prompts: at least one.
            sampling: answer i, counted over prompts and samples, is drawn from seed + i; with seed None from
                seeds of the engine's. The model's own end tokens end an answer, besides stop_token_ids.

        Returns:
            (trajectories, block): num_samples trajectories a prompt, in order, and their tokens. A stop
            token is part of its answer, has a log-probability and is trained on. Log-probabilities are
            those of the whole vocabulary at the sampling temperature, before top-p and top-k; for
            temperature 0, at 1.

        Raises:
            EngineError: a swap is under way or failed, the engine died, or a prompt does not fit.
        """
        version = self.session.require_serving()
        future = self._caller.call("generate", [prompt.token_ids for prompt in prompts], sampling, version)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        block, finish = await asyncio.wrap_future(future)
        rows = iter(_trajectories(block, finish, version))
        return [[next(rows) for _ in range(sampling.num_samples)] for _ in prompts], block

    def export_parameters(self) -> list[dict[str, SharedTensor]]:
        """Let other processes reach the parameters, in place. One dict a TP rank, by SGLang's names.

        Blocks, and so does the engine. A second call gives the same memory again.

        Raises:
            ResourceError: shared memory is full, or memory of a GPU cannot be shared.
            EngineError: SGLang repacked a parameter, or the engine died.
        """
        return self._caller.call("export_parameters").result()

    async def probe_loader(self, layout: Layout) -> LayoutError | None:
        """Compare what SGLang's own loader does with `layout`, before anybody writes by it.

        The loader takes tags in place of weights, which are restored bit for bit. No request may run.

        Returns:
            Why weights must not be written in place; None: `layout` is that of the engine.

        Raises:
            EngineError: a request runs, or the loader failed on the tags.
        """
        if self._running:
            raise EngineError(f"{self.session.name} answers requests; its loader is probed before the first")
        try:
            await asyncio.wrap_future(self._caller.call("probe_loader", layout))
        except LayoutError as difference:
            return difference
        return None

    async def begin_swap(self, version: PolicyVersion) -> None:
        """Refuse new requests and wait for those that run; then parameters may be written.

        Raises:
            VersionError: `version` is not the next one.
            EngineError: a swap is under way already.
        """
        self.session.quiesce(version)
        await self._running_to_end()
        self.session.begin_write()

    async def rest(self) -> None:
        """Give back the memory that only answering needs, on a GPU, until weights are committed.

        Until then no request may come; those that run end first.
        """
        await self._running_to_end()
        await asyncio.wrap_future(self._caller.call("rest"))

    async def checksums(self) -> list[dict[str, int]]:
        """Of what the parameters hold now, as the engine's own processes read it; one dict a TP rank."""
        return await asyncio.wrap_future(self._caller.call("checksums"))

    async def load_bucket(self, bucket: Bucket, buffer: SharedTensor, *, first: bool, last: bool) -> None:
        """Take a part of a checkpoint through SGLang's own loader, during a swap; all parts are a swap.

        Args:
            buffer: holds the bucket until this returns.

        Raises:
            EngineError: SGLang did not take it; a later swap repeats from the first bucket.
        """
        await asyncio.wrap_future(self._caller.call("load_bucket", bucket, buffer, first, last))

    async def commit_swap(self, version: PolicyVersion) -> None:
        """Serve the weights that were written, once their checksums are equal. A swap left open never serves.

        Raises:
            VersionError: the swap was begun for another version.
            EngineError: no swap is under way, or SGLang kept its cache of the old weights; it does not serve.
        """
        self.session.commit(version)
        await asyncio.wrap_future(self._caller.call("adopt", version))
        self.session.serve()

    async def _running_to_end(self) -> None:
        while self._running:
            ends = [asyncio.wrap_future(future) for future in tuple(self._running)]
            await asyncio.gather(*ends, return_exceptions=True)

    def shutdown(self) -> None:
        """End the engine's processes and remove what they leave behind. Repeating it is free."""
        self._caller.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_S)
        self._end_processes()

    def _wait_until_up(self, connection: Connection) -> Started:
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
        leftovers.remove(self._started.pids, self._started.name)
        shutil.rmtree(self._folder, ignore_errors=True)


def _arguments(setup: EngineSetup) -> dict[str, Any]:
    positions = spec.read(setup.model_folder).max_positions
    if setup.max_prompt_tokens + setup.max_response_tokens > positions:
        raise ConfigError(
            f"a prompt of {setup.max_prompt_tokens} tokens and an answer of {setup.max_response_tokens} are "
            f"longer than the {positions} positions of {setup.model_folder}",
            fix=f"rollout.max_response_tokens = {positions - setup.max_prompt_tokens} or less",
        )
    depending = engine_arguments(
        tp=setup.tp,
        ep=setup.ep,
        dp_attention=setup.dp_attention,
        seed=setup.seed,
        max_prompt_tokens=setup.max_prompt_tokens,
        max_response_tokens=setup.max_response_tokens,
        kv_cache_tokens=setup.kv_cache_tokens,
        memory_fraction=setup.memory_fraction,
        max_running_requests=setup.max_running_requests,
    )
    model = {
        "model_path": setup.model_folder,
        "weight_version": str(setup.version),
        "enable_return_routed_experts": setup.returns_experts,
    }
    if setup.parts == 1:
        return depending | model
    return depending | model | {"nnodes": setup.parts, "node_rank": setup.part, "dist_init_addr": setup.meet}


def _spawn(order: Order, setup: EngineSetup, log_path: Path) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start the host in a session of its own: a signal to its group reaches every process of the engine.

    By -c and not by -m: the processes that it spawns would import a main module again.
    """
    ours, theirs = socket.socketpair()
    program = f"from hybridrl.rollout.sglang.host import main; main({theirs.fileno()})"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with theirs, open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=process_environment(setup.tp, setup.parts, order.folder),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    connection.send(order)
    return process, connection


def _trajectories(block: TokenBlock, finish: Sequence[Finish], version: PolicyVersion) -> list[Trajectory]:
    prompt_N = block.prompt_tokens_N.tolist()
    response_N = (np.diff(block.start_N) - block.prompt_tokens_N).tolist()
    return [
        Trajectory(row=i, prompt_tokens=p, response_tokens=r, trained_tokens=r, finish=f, version=version)
        for i, (p, r, f) in enumerate(zip(prompt_N, response_N, finish, strict=True))
    ]
