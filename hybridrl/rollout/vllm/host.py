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

import numpy as np
import torch

from hybridrl.batch import TokenBlock
from hybridrl.errors import EngineError
from hybridrl.layout.base import Layout
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.channel import Callee
from hybridrl.rollout.hosting import child_ids, end_children, ends_with_owner, shared_files
from hybridrl.rollout.process import LaunchSpec, Ready, leftovers_of, remove_leftovers
from hybridrl.rollout.vllm.core import Core, Sampled
from hybridrl.types import Finish, PolicyVersion, Sampling

TokenIds = Sequence[int]

_SHARED = ("psm_", "sem.mp-", "vllm_dist_")
"""Beginnings of the names of vLLM's files in shared memory: queues to its workers, and their exchange."""


class EngineHost:
    """The calls that the engine's owner may make; rollout/base.py has their contracts."""

    def __init__(self, launch: LaunchSpec) -> None:
        given = launch.arguments
        self._context = given["engine"]["max_model_len"]
        self._failed = asyncio.Event()
        self._loop = asyncio.get_event_loop()
        self._core = Core(given["engine"], given["end_tokens"], given["version"] or 0, self._fail)
        self._requests: dict[str, Sampled] = {}
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

    async def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, version: PolicyVersion
    ) -> tuple[TokenBlock, list[Finish]]:
        """Answer prompts; the rows of the block are ordered by prompt, then by sample."""
        self._check(prompts, sampling)
        repeated = [ids for ids in prompts for _ in range(sampling.num_samples)]
        found = [Sampled(ids) for ids in repeated]
        await self._core.sample(found, sampling, self._first_seed(sampling))
        versions = {v for sampled in found for _, v in sampled.since}
        if versions != {version}:
            raise EngineError(f"answers come from versions {sorted(versions)}, not from {version}")
        block = TokenBlock.from_answers(
            repeated, [one.tokens for one in found], [one.logps for one in found], version
        )
        return block, [one.finish or "abort" for one in found]

    async def request(self, request: Request) -> Answer:
        self._check([request.token_ids], request.sampling)
        _refuse(request)
        if request.id in self._requests:
            raise EngineError(f"request {request.id!r} runs already", fix="give each an id of its own")
        sampled = self._requests[request.id] = Sampled(request.token_ids)
        try:
            await self._core.sample([sampled], request.sampling, self._first_seed(request.sampling))
        finally:
            del self._requests[request.id]
        return Answer(
            id=request.id,
            token_T=np.array(sampled.tokens, np.int32),
            logp_T=np.array(sampled.logps, np.float32),
            version_T=sampled.version_T,
            finish=sampled.finish or "abort",
        )

    async def abort(self, ids: Sequence[str]) -> None:
        await self._core.abort([self._requests[one] for one in ids if one in self._requests])

    async def pause(self) -> None:
        await self._core.pause(keep_cache=False)

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

    def _first_seed(self, sampling: Sampling) -> int:
        return self._unseeded.getrandbits(62) if sampling.seed is None else sampling.seed

    def _fail(self) -> None:
        self._loop.call_soon_threadsafe(self._failed.set)

    def _check(self, prompts: Sequence[TokenIds], sampling: Sampling) -> None:
        """Refuse an empty prompt, one that is too long, and token ids outside the embedding."""
        vocab_size = self._core.vocab_size
        for ids in prompts:
            if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
                raise EngineError(
                    f"a prompt is empty or has a token outside the model's {vocab_size}: {list(ids)[:16]}"
                )
            if len(ids) + sampling.max_response_tokens > self._context:
                raise EngineError(
                    f"a request of {len(ids)} tokens and {sampling.max_response_tokens} more is longer than "
                    f"the engine's {self._context}"
                )


def _refuse(request: Request) -> None:
    if request.sampling.num_samples != 1:
        raise EngineError(
            f"request {request.id!r} asks for {request.sampling.num_samples} answers",
            fix="one request an answer, or generate()",
        )
    if request.arrays:
        raise EngineError(
            f"request {request.id!r} brings {', '.join(request.arrays)}: vLLM is given token ids only",
            fix="leave its arrays out",
        )


def main(file_descriptor: int) -> None:
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
