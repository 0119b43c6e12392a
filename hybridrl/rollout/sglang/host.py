"""The process that hosts one sglang.Engine; rollout/process.py starts it.

SGLang replaces signal handlers and the event loop policy of its process, kills all its children at
shutdown, and ends the process when a scheduler dies. So it gets a separate process, and every failure here
reaches the engine's owner as an EngineError.

Waits: on the owner (until it hangs up, or dies, which closes the pipe), and on the schedulers.
"""

import asyncio
import gc
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.entrypoints import engine as sglang_engine
from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightVersionReqInput,
)

from hybridrl.errors import EngineError
from hybridrl.hosts import stacks
from hybridrl.hosts.standins import operators
from hybridrl.layout.base import Layout
from hybridrl.models import spec
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Request
from hybridrl.rollout.channel import Callee
from hybridrl.rollout.hosting import end_children, ends_with_owner, say_what_ended
from hybridrl.rollout.lots import AnswerLot
from hybridrl.rollout.process import LaunchSpec, Ready
from hybridrl.rollout.sglang import scheduler
from hybridrl.rollout.sglang.arguments import has_cuda
from hybridrl.rollout.sglang.serve import Serving
from hybridrl.rollout.sglang.start import remove_leftovers
from hybridrl.types import PolicyVersion

_IDLE_S = 5.0
_POLL_S = 0.005
_CACHE = [GPU_MEMORY_TYPE_KV_CACHE]


class Engine(sglang_engine.Engine):
    run_scheduler_process_func = staticmethod(scheduler.run)

    @classmethod
    def _launch_scheduler_processes(cls, *args: Any, **kwargs: Any) -> Any:
        # A scheduler that fails sends SIGQUIT; SGLang's own handler would kill this process at once.
        signal.signal(signal.SIGQUIT, lambda number, frame: sys.exit(1))
        if not has_cuda():
            # SGLang spawns. A fork has the modules loaded already, which halves start time and memory.
            multiprocessing.set_start_method("fork", force=True)
        return super()._launch_scheduler_processes(*args, **kwargs)

    @classmethod
    def _launch_detokenizer_subprocesses(cls, *args: Any, **kwargs: Any) -> Any:
        """Start no detokenizer: without a tokenizer, schedulers send token ids straight to this process."""
        return [], []


class EngineHost:
    """The calls that the engine's owner may make; rollout/base.py has their contracts."""

    def __init__(self, launch: LaunchSpec) -> None:
        arguments = launch.arguments
        if not has_cuda():
            operators.declare()
        self._engine = Engine(**arguments)
        self._manager: Any = self._engine.tokenizer_manager
        """SGLang's TokenizerManager; None if another part of this engine takes all requests and calls."""

        self._serving = Serving(
            self._manager,
            caches_prefixes=not arguments.get("disable_radix_cache"),
            returns_experts=arguments["enable_return_routed_experts"],
            seed=arguments["random_seed"],
            vision=spec.read(arguments["model_path"]).vision,
        )
        self._cache_released = self._keeps_cache = False
        self._derives: bool | None = None
        """Whether the model has tensors derived from its weights; None until the first swap."""

        # Objects of the start-up are excluded from garbage collection: scanning them took 0.4 s in every
        # second call with a thousand answers.
        gc.collect()
        gc.freeze()

    @property
    def ready(self) -> Ready:
        pids = self._engine.get_all_child_pids()
        return Ready(self._engine.port_args.instance_id, pids, with_stacks=tuple(pids))

    async def serve(self, connection: Connection) -> None:
        """Answer calls until the owner hangs up or a scheduler fails."""
        if self._manager is not None:
            self._manager.auto_create_handle_loop()  # sets SGLang's signal handlers, before ours
        loop, failed = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGQUIT, signal.SIGTERM):
            loop.add_signal_handler(number, failed.set)
        ends = [loop.create_task(end) for end in (failed.wait(), Callee(connection, self).serve())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def start(self, requests: Sequence[Request]) -> None:
        """Take requests and return; `answers` waits for their answers."""
        self._serving.start(requests)

    async def answers(self) -> AnswerLot:
        return await self._serving.inbox.take()

    async def abort(self, ids: Sequence[str]) -> None:
        self._serving.abort(ids)

    async def pause(self, keep_cache: bool) -> float | None:
        """Pause with SGLang's mode "retract", which drops the cache of running requests and recomputes it
        later, or with its mode "in_place". The schedulers sample nothing once this returns.

        Returns:
            Seconds spent on recomputation until now; None on a GPU.
        """
        self._serving.pause()
        self._keeps_cache = keep_cache
        mode = "in_place" if keep_cache else "retract"
        await self._manager.pause_generation(PauseGenerationReqInput(mode=mode))
        while True:  # SGLang only sends the pause
            found = await self._ask_schedulers("paused")
            if all(is_paused for is_paused, _ in found):
                return found[0][1]
            await asyncio.sleep(_POLL_S)

    async def continue_(self) -> None:
        self._keeps_cache = False
        await self._manager.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))
        self._serving.continue_()

    async def export_parameters(self) -> list[Any]:
        return await self._ask_schedulers("export_parameters")

    async def release_cache(self) -> None:
        """Free the key-value cache on a GPU. No request may run, unless paused."""
        if has_cuda() and not self._cache_released:
            await self._flush_cache()  # SGLang's release would end a scheduler that is not idle
            await self._manager.release_memory_occupation(ReleaseMemoryOccupationReqInput(tags=_CACHE))
            self._cache_released = True

    async def resume_cache(self) -> None:
        if self._cache_released:
            await self._manager.resume_memory_occupation(ResumeMemoryOccupationReqInput(tags=_CACHE))
            self._cache_released = False

    async def checksums(self) -> list[Any]:
        return await self._ask_schedulers("checksums")

    async def probe_loader(self, layout: Layout) -> None:
        await self._ask_schedulers("probe_loader", layout)

    async def load_bucket(self, bucket: Bucket, buffer: SharedTensor, first: bool, last: bool) -> None:
        await self._ask_schedulers("load_bucket", bucket, buffer, first, last)

    async def set_version(self, version: PolicyVersion) -> None:
        """Declare that the parameters are those of `version`; drop or recompute what depends on the old ones.

        The key-value cache is allocated again. In a pause that keeps it, it stays for running requests only.

        Raises:
            EngineError: a request is still running.
        """
        await self.resume_cache()
        if self._derives is None:
            self._derives = any(await self._ask_schedulers("derives"))
        if self._derives:
            await self._ask_schedulers("derive")
        if self._keeps_cache:
            self._serving.forget_prompts()
        else:
            await self._flush_cache()
        self._serving.version = version
        renamed = UpdateWeightVersionReqInput(new_version=str(version), abort_all_requests=False)
        await self._manager.update_weight_version(renamed)

    async def _flush_cache(self) -> None:
        """Empty the prefix cache.

        With overlapped scheduling the last batch may end a moment after its answers, so this tries for a
        while.

        Raises:
            EngineError: a request is still running.
        """
        self._serving.forget_prompts()
        deadline = time.monotonic() + _IDLE_S
        while not (await self._manager.flush_cache()).success:
            if time.monotonic() > deadline:
                raise EngineError(
                    "SGLang kept its prefix cache: a request still runs", fix="end all requests first"
                )
            await asyncio.sleep(_POLL_S)

    async def _ask_schedulers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of all schedulers; returns the answers by tensor-parallel rank.

        Only one call may be in progress.
        """
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "arguments").write_bytes(pickle.dumps(args))
            # In a thread, because a scheduler that dies never answers, and the event loop has to notice that.
            await asyncio.to_thread(self._engine.collective_rpc, method, folder=folder)
            answers = pickle.loads(Path(folder, "answers").read_bytes())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def main(file_descriptor: int) -> None:
    stacks.answer()
    connection = Connection(file_descriptor)
    launch: LaunchSpec = connection.recv()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    ready, children = Ready("", []), []
    try:
        with ends_with_owner(connection, lambda: _clean_up(launch, ready)):
            host = EngineHost(launch)
        ready, children = host.ready, multiprocessing.active_children()
        connection.send(ready)
        loop.run_until_complete(host.serve(connection))
    finally:
        say_what_ended(children)
        _clean_up(launch, ready)
    os._exit(0)  # SGLang's exit handlers would wait for processes that are gone


def _clean_up(launch: LaunchSpec, ready: Ready) -> None:
    remove_leftovers([*ready.pids, *end_children()], ready.name)
    shutil.rmtree(launch.folder, ignore_errors=True)
