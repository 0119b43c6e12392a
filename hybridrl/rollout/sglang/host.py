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
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.entrypoints import engine as sglang_engine
from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    GenerateReqInput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightVersionReqInput,
)

from hybridrl.batch import TokenBlock
from hybridrl.errors import EngineError
from hybridrl.layout.base import Layout
from hybridrl.reshard.buckets import Bucket
from hybridrl.reshard.transports.base import SharedTensor
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.channel import Callee
from hybridrl.rollout.hosting import end_children, ends_with_owner
from hybridrl.rollout.process import LaunchSpec, Ready
from hybridrl.rollout.sglang import scheduler
from hybridrl.rollout.sglang.arguments import has_cuda
from hybridrl.rollout.sglang.start import remove_leftovers
from hybridrl.types import Finish, PolicyVersion, Sampling

_IDLE_S = 5.0
_POLL_S = 0.02
_CACHE = [GPU_MEMORY_TYPE_KV_CACHE]

TokenIds = Sequence[int]


@dataclass(slots=True)
class _Running:
    """A request in progress."""

    # Random, because SGLang aborts every request whose id starts with the given one.
    rid: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Id of the request in SGLang."""

    sent: bool = False
    aborted: bool = False


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
        self._engine = Engine(**arguments)
        self._manager: Any = self._engine.tokenizer_manager
        """SGLang's TokenizerManager; None if another part of this engine takes all requests and calls."""

        self._caches_prefixes = not arguments.get("disable_radix_cache")
        self._returns_experts = arguments["enable_return_routed_experts"]
        self._requests: dict[str, _Running] = {}
        self._paused, self._changed = False, asyncio.Condition()
        self._cache_released = False
        self._derives: bool | None = None
        """Whether the model has tensors derived from its weights; None until the first swap."""

        self._unseeded = random.Random(arguments["random_seed"])
        # Objects of the start-up are excluded from garbage collection: scanning them took 0.4 s in every
        # second call with a thousand answers.
        gc.collect()
        gc.freeze()

    @property
    def ready(self) -> Ready:
        return Ready(self._engine.port_args.instance_id, self._engine.get_all_child_pids())

    async def serve(self, connection: Connection) -> None:
        """Answer calls until the owner hangs up or a scheduler fails."""
        if self._manager is not None:
            self._manager.auto_create_handle_loop()  # sets SGLang's signal handlers, before ours
        loop, failed = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGQUIT, signal.SIGTERM):
            loop.add_signal_handler(number, failed.set)
        ends = [loop.create_task(end) for end in (failed.wait(), Callee(connection, self).serve())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def generate(
        self, prompts: Sequence[TokenIds], sampling: Sampling, version: PolicyVersion
    ) -> tuple[TokenBlock, list[Finish]]:
        """Answer prompts; the rows of the block are ordered by prompt, then by sample."""
        self._check(prompts)
        if self._caches_prefixes and sampling.num_samples > 1:
            await self._prefill(prompts)
        repeated = [list(ids) for ids in prompts for _ in range(sampling.num_samples)]
        first_seed = self._unseeded.getrandbits(62) if sampling.seed is None else sampling.seed
        shared = _sampling_parameters(sampling)
        request = GenerateReqInput(
            input_ids=repeated,
            sampling_params=[shared | {"sampling_seed": first_seed + i} for i in range(len(repeated))],
            return_logprob=True,
            return_routed_experts=self._returns_experts,
        )
        answers = await anext(self._manager.generate_request(request))
        described = [answer["meta_info"] for answer in answers]
        _expect_version(described, version)
        block = TokenBlock.from_answers(
            repeated,
            [answer["output_ids"] for answer in answers],
            [[logp for logp, *_ in answer["output_token_logprobs"]] for answer in described],
            version,
            experts=self._experts(answers) if self._returns_experts else None,
        )
        return block, [answer["finish_reason"]["type"] for answer in described]

    async def request(self, request: Request) -> Answer:
        self._check([request.token_ids])
        _refuse(request)
        if request.id in self._requests:
            raise EngineError(f"request {request.id!r} runs already", fix="give each an id of its own")
        running = self._requests[request.id] = _Running()
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: running.aborted or not self._paused)
            if running.aborted:
                return _no_answer(request)
            running.sent = True
            return await self._answer(request, running.rid)
        finally:
            del self._requests[request.id]

    async def abort(self, ids: Sequence[str]) -> None:
        for running in [self._requests[one] for one in ids if one in self._requests]:
            running.aborted = True
            if running.sent:
                self._manager.abort_request(running.rid)
        async with self._changed:
            self._changed.notify_all()

    async def pause(self) -> None:
        """Pause with SGLang's mode "retract", which drops the cache of running requests and recomputes it
        later."""
        self._paused = True
        await self._manager.pause_generation(PauseGenerationReqInput(mode="retract"))

    async def continue_(self) -> None:
        await self._manager.continue_generation(ContinueGenerationReqInput(torch_empty_cache=False))
        async with self._changed:
            self._paused = False
            self._changed.notify_all()

    async def _answer(self, request: Request, rid: str) -> Answer:
        seed = request.sampling.seed
        asked = GenerateReqInput(
            rid=rid,
            input_ids=list(request.token_ids),
            sampling_params=_sampling_parameters(request.sampling)
            | {"sampling_seed": self._unseeded.getrandbits(62) if seed is None else seed},
            return_logprob=True,
            return_routed_experts=self._returns_experts,
        )
        answer = await anext(self._manager.generate_request(asked))
        described = answer["meta_info"]
        has_experts = self._returns_experts and "routed_experts" in described
        return Answer(
            id=request.id,
            token_T=np.array(answer["output_ids"], np.int32),
            logp_T=np.array([logp for logp, *_ in described["output_token_logprobs"]], np.float32),
            version_T=_versions(described, len(answer["output_ids"])),
            finish=described["finish_reason"]["type"],
            experts_SLK=self._experts([answer])[0] if has_experts else None,
        )

    def _experts(self, answers: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """Experts of each answer, int32 [tokens but the last, layers, experts of a token]."""
        config = self._manager.model_config.hf_text_config
        sizes = config.num_hidden_layers, config.num_experts_per_tok
        return [
            np.frombuffer(b64decode(answer["meta_info"]["routed_experts"]), np.int32).reshape(-1, *sizes)
            for answer in answers
        ]

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

        The key-value cache is allocated again.

        Raises:
            EngineError: a request is still running.
        """
        await self.resume_cache()
        if self._derives is None:
            self._derives = any(await self._ask_schedulers("derives"))
        if self._derives:
            await self._ask_schedulers("derive")
        await self._flush_cache()
        renamed = UpdateWeightVersionReqInput(new_version=str(version), abort_all_requests=False)
        await self._manager.update_weight_version(renamed)

    async def _flush_cache(self) -> None:
        """Empty the prefix cache.

        With overlapped scheduling the last batch may end a moment after its answers, so this tries for a
        while.

        Raises:
            EngineError: a request is still running.
        """
        deadline = time.monotonic() + _IDLE_S
        while not (await self._manager.flush_cache()).success:
            if time.monotonic() > deadline:
                raise EngineError(
                    "SGLang kept its prefix cache: a request still runs", fix="end all requests first"
                )
            await asyncio.sleep(_POLL_S)

    def _check(self, prompts: Sequence[TokenIds]) -> None:
        """Refuse an empty prompt, and token ids outside the embedding, which would end the scheduler."""
        vocab_size = self._manager.model_config.vocab_size
        for ids in prompts:
            if not ids or not 0 <= min(ids) <= max(ids) < vocab_size:
                raise EngineError(
                    f"a prompt is empty or has a token outside the model's {vocab_size}: {list(ids)[:16]}"
                )

    async def _prefill(self, prompts: Sequence[TokenIds]) -> None:
        """Put each prompt into the prefix cache once; otherwise all samples of it would compute it."""
        request = GenerateReqInput(
            input_ids=[list(ids) for ids in dict.fromkeys(map(tuple, prompts))],
            sampling_params={"max_new_tokens": 0, "temperature": 0.0},
        )
        await anext(self._manager.generate_request(request))

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


def _sampling_parameters(sampling: Sampling) -> dict[str, Any]:
    return {
        "max_new_tokens": sampling.max_response_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_token_ids),
    }


def _expect_version(described: Sequence[dict[str, Any]], version: PolicyVersion) -> None:
    found = {answer["weight_version"] for answer in described}
    if found != {str(version)}:
        raise EngineError(f"answers come from versions {sorted(found)}, not from {version}")


def _versions(described: dict[str, Any], num_tokens: int) -> np.ndarray:
    """Version of the weights that sampled each token, int32 [num_tokens]."""
    found = np.empty(num_tokens, np.int32)
    for span in described["weight_versions"] if num_tokens else ():
        found[span["start"] : span["end"]] = int(span["version"])
    return found


def _no_answer(request: Request) -> Answer:
    """The empty answer to a request that was aborted before SGLang got it."""
    none = np.zeros(0, np.int32)
    return Answer(id=request.id, token_T=none, logp_T=none.astype(np.float32), version_T=none, finish="abort")


def _refuse(request: Request) -> None:
    if request.sampling.num_samples != 1:
        raise EngineError(
            f"request {request.id!r} asks for {request.sampling.num_samples} answers",
            fix="one request an answer, or generate()",
        )
    if request.arrays:
        raise EngineError(
            f"request {request.id!r} brings {', '.join(request.arrays)}: SGLang is given token ids only",
            fix="leave its arrays out",
        )


def main(file_descriptor: int) -> None:
    connection = Connection(file_descriptor)
    launch: LaunchSpec = connection.recv()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    ready = Ready("", [])
    try:
        with ends_with_owner(connection, lambda: _clean_up(launch, ready)):
            host = EngineHost(launch)
        ready = host.ready
        connection.send(ready)
        loop.run_until_complete(host.serve(connection))
    finally:
        _clean_up(launch, ready)
    os._exit(0)  # SGLang's exit handlers would wait for processes that are gone


def _clean_up(launch: LaunchSpec, ready: Ready) -> None:
    remove_leftovers([*ready.pids, *end_children()], ready.name)
    shutil.rmtree(launch.folder, ignore_errors=True)
