"""The process that hosts one vLLM engine, in the interpreter of rollout.python; rollout/process.py starts it.

Waits: on the owner (until it hangs up, or dies, which closes the pipe), and on vLLM.
"""

import asyncio
import gc
import os
import random
import shutil
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from hybridrl.hosts import stacks
from hybridrl.layout.base import Layout
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Request
from hybridrl.rollout.channel import Callee
from hybridrl.rollout.hosting import child_ids, end_children, ends_with_owner, shared_files
from hybridrl.rollout.limits import refusal
from hybridrl.rollout.lots import AnswerLot, Inbox
from hybridrl.rollout.process import LaunchSpec, Ready, leftovers_of, remove_leftovers
from hybridrl.rollout.vllm.core import Core, Sampled
from hybridrl.types import PolicyVersion

_SHARED = ("psm_", "sem.mp-", "vllm_dist_")
"""Beginnings of the names of vLLM's files in shared memory: queues to its workers, and their exchange."""


class EngineHost:
    """The calls that the engine's owner may make; rollout/base.py has their contracts."""

    def __init__(self, launch: LaunchSpec) -> None:
        given = launch.arguments
        self._context = given["engine"]["max_model_len"]
        self._failed = asyncio.Event()
        self._loop = asyncio.get_event_loop()
        version = given["version"] or 0
        self._core = Core(given["engine"], given["end_tokens"], version, self._ended, self._fail)
        self._running: dict[str, Sampled] = {}
        """Running requests by id."""

        self._inbox = Inbox()
        self._cache_released = False
        self._unseeded = random.Random(given["engine"]["seed"])
        gc.collect()
        gc.freeze()  # objects of the start-up are not scanned again

    async def serve(self, connection: Connection) -> None:
        """Answer calls until the owner hangs up or vLLM fails."""
        self._core.start()
        for number in (signal.SIGQUIT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._failed.set)
        ends = [
            self._loop.create_task(end) for end in (self._failed.wait(), Callee(connection, self).serve())
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def start(self, requests: Sequence[Request]) -> None:
        """Take requests and return; `answers` waits for their answers."""
        accepted = []
        for request in requests:
            vocab_size, longest = self._core.vocab_size, self._context
            if found := refusal(request, "vLLM", vocab_size=vocab_size, longest=longest):
                self._inbox.put(request, found)
            else:
                seed = request.sampling.seed
                accepted.append(Sampled(request, self._unseeded.getrandbits(62) if seed is None else seed))
        self._running |= {sampled.request.id: sampled for sampled in accepted}
        self._core.add(accepted)

    async def answers(self) -> AnswerLot:
        return await self._inbox.take()

    async def abort(self, ids: Sequence[str]) -> None:
        await self._core.abort([self._running[one] for one in ids if one in self._running])

    async def pause(self, keep_cache: bool) -> None:
        await self._core.pause(keep_cache)

    async def continue_(self) -> None:
        await self._core.resume()

    async def export_parameters(self) -> list[Any]:
        return await self._core.workers("export_parameters")

    async def release_cache(self) -> None:
        """Free the key-value cache on a GPU. No request may run, unless paused."""
        if torch.cuda.is_available() and not self._cache_released:
            await self._core.release_cache()
            self._cache_released = True

    async def resume_cache(self) -> None:
        if self._cache_released:
            await self._core.resume_cache()
            self._cache_released = False

    async def checksums(self) -> list[Any]:
        return await self._core.workers("checksums")

    async def probe_loader(self, layout: Layout) -> None:
        await self._core.workers("probe_loader", layout)

    async def load_bucket(self, bucket: Bucket, buffer: SharedTensor, first: bool, last: bool) -> None:
        await self._core.workers("load_bucket", bucket, buffer, first, last)

    async def set_version(self, version: PolicyVersion) -> None:
        """Declare that the parameters are those of `version`; drop or recompute what depends on the old ones.

        Raises:
            EngineError: a request is still running.
        """
        await self.resume_cache()
        await self._core.workers("derive")
        await self._core.set_version(version)

    def _fail(self) -> None:
        self._loop.call_soon_threadsafe(self._failed.set)

    def _ended(self, answers: list[Sampled]) -> None:
        self._loop.call_soon_threadsafe(self._hand_over, answers)

    def _hand_over(self, answers: list[Sampled]) -> None:
        for sampled in answers:
            del self._running[sampled.request.id]
            self._inbox.put(sampled.request, sampled.answer())


def main(file_descriptor: int) -> None:
    stacks.answer()
    connection = Connection(file_descriptor)
    launch: LaunchSpec = connection.recv()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with ends_with_owner(connection, lambda: _clean_up(launch)):
            host = EngineHost(launch)
        connection.send(Ready("", child_ids(), tuple(shared_files(_SHARED))))
        loop.run_until_complete(host.serve(connection))
    finally:
        _clean_up(launch)
    os._exit(0)  # vLLM's exit handlers would wait for processes that are gone


def _clean_up(launch: LaunchSpec) -> None:
    files = shared_files(_SHARED)
    remove_leftovers([*leftovers_of([os.getpid(), *end_children()]), *files])
    shutil.rmtree(launch.folder, ignore_errors=True)
