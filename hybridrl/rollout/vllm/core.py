"""The loop around vLLM's EngineCore: a thread that schedules, computes and collects, step by step.

The core is in this process, and so is the worker at tp = 1: no message is packed between them. Between two
steps the thread does what the event loop asks for. So a call sees an engine at rest: a pause takes effect at
once, and every token belongs to one version of the weights.
"""

# pyright: reportMissingImports=false
# vLLM is in another environment.

import asyncio
import itertools
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor

from hybridrl.errors import EngineError
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.vllm.sampler import SEED
from hybridrl.types import Finish, PolicyVersion

_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(slots=True)
class Sampled:
    """An answer that grows."""

    request: Request
    seed: int
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    since: list[tuple[int, PolicyVersion]] = field(default_factory=list)
    """(index of a token, version that sampled it and the following ones)."""

    finish: Finish = "abort"

    def answer(self) -> Answer:
        start = [at for at, _ in self.since]
        lengths = np.diff([*start, len(self.tokens)])
        return Answer(
            id=self.request.id,
            token_T=np.array(self.tokens, np.int32),
            logp_T=np.array(self.logps, np.float32),
            version_T=np.repeat(np.array([version for _, version in self.since], np.int32), lengths),
            finish=self.finish,
        )


class Core:
    def __init__(
        self,
        arguments: dict[str, Any],
        end_tokens: Sequence[int],
        version: PolicyVersion,
        ended: Callable[[list[Sampled]], None],
        failed: Callable[[], None],
    ) -> None:
        """Start vLLM, which takes 5 seconds for a small model, not counting its import.

        Args:
            arguments: of vLLM's EngineArgs.
            end_tokens: the model's own tokens that end an answer.
            version: version of the first answers.
            ended: called in another thread with the answers that have ended in a step.
            failed: called in another thread when vLLM cannot go on.
        """
        config = EngineArgs(**arguments).create_engine_config()
        if not torch.cuda.is_available():
            # vLLM has just set "spawn". A fork has the modules loaded already, which saves half of the start.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        self._failed, self._ended = failed, ended
        self._core = EngineCore(config, Executor.get_class(config), False, executor_fail_callback=failed)
        self._end_tokens, self._version = tuple(end_tokens), version
        self.vocab_size: int = config.model_config.get_vocab_size()
        self._ids = map(str, itertools.count())
        self._running: dict[str, Sampled] = {}
        self._done: list[Sampled] = []
        self._paused, self._keeps_cache = False, False
        self._asked: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="vllm-core")

    def start(self) -> None:
        self._thread.start()

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function between two steps."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def run() -> None:
            try:
                result = function(*args)
            except Exception as error:  # thread boundary: the caller gets the error
                loop.call_soon_threadsafe(_fail, future, error)
            else:
                loop.call_soon_threadsafe(_complete, future, result)

        self._ask(run)
        return await future

    def add(self, answers: Sequence[Sampled]) -> None:
        """Start these answers; a paused engine samples them later."""
        self._ask(partial(self._add, answers))

    async def abort(self, answers: Sequence[Sampled]) -> None:
        await self.call(self._abort, answers)

    async def pause(self, keep_cache: bool) -> None:
        await self.call(self._pause, keep_cache)

    async def resume(self) -> None:
        await self.call(self._resume)

    async def set_version(self, version: PolicyVersion) -> None:
        """The weights are those of `version` from now on.

        In a pause that keeps the cache, it stays for running requests only.

        Raises:
            EngineError: vLLM kept its prefix cache, because a request runs.
        """
        await self.call(self._set_version, version)

    async def release_cache(self) -> None:
        """Free the key-value cache on a GPU, and memory of past computation.

        vLLM's own sleep would mark weights as asleep too, and do nothing the next time.
        """
        await self.call(self._core.reset_prefix_cache)
        await self.call(self._core.model_executor.discard, ("kv_cache",))
        await self.workers("release_cached_memory")

    async def resume_cache(self) -> None:
        await self.call(self._core.model_executor.wake_up, ["kv_cache"])

    async def workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of all workers; returns the answers by tensor-parallel rank."""
        answers = await self.call(self._core.collective_rpc, "rollout_call", None, (method, *args))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    # What follows runs in the thread.

    def _loop(self) -> None:
        try:
            while True:
                self._wait()
                while self._asked:
                    self._asked.popleft()()
                if not self._paused and self._core.scheduler.has_requests():
                    self._step()
                if self._done:
                    done, self._done = self._done, []
                    self._ended(done)
        except Exception:  # the engine is broken: its owner gets the last lines of the log
            traceback.print_exc()
            self._failed()

    def _wait(self) -> None:
        with self._wake:
            self._wake.wait_for(
                lambda: self._asked or (not self._paused and self._core.scheduler.has_requests())
            )

    def _ask(self, function: Callable[[], None]) -> None:
        with self._wake:
            self._asked.append(function)
            self._wake.notify()

    def _step(self) -> None:
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        for output in outputs[0].outputs if outputs else ():
            self._take(output)

    def _take(self, output: EngineCoreOutput) -> None:
        sampled = self._running[output.request_id]
        if output.new_token_ids:
            assert output.new_logprobs is not None, "log-probabilities are asked for"
            sampled.tokens += output.new_token_ids
            sampled.logps += output.new_logprobs.logprobs[:, 0].tolist()
        if output.finish_reason is not None:
            self._end(output.request_id, str(output.finish_reason))

    def _end(self, name: str, reason: str) -> None:
        if reason not in _FINISH:
            raise EngineError(f"vLLM ended a request with {reason!r}")
        sampled = self._running.pop(name)
        sampled.finish = _FINISH[reason]
        self._done.append(sampled)

    def _add(self, answers: Sequence[Sampled]) -> None:
        for sampled in answers:
            request = EngineCoreRequest(
                request_id=next(self._ids),
                prompt_token_ids=list(sampled.request.token_ids),
                mm_features=None,
                sampling_params=_parameters(sampled, self._end_tokens),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=str(self._version),  # a pause may keep prefixes of older versions
                data_parallel_rank=None,
            )
            sampled.since.append((0, self._version))
            self._running[request.request_id] = sampled
            self._core.add_request(*self._core.preprocess_add_request(request))

    def _abort(self, answers: Sequence[Sampled]) -> None:
        wanted = set(map(id, answers))
        for name in [name for name, sampled in self._running.items() if id(sampled) in wanted]:
            self._core.abort_requests([name])
            self._end(name, "abort")

    def _pause(self, keep_cache: bool) -> None:
        self._paused, self._keeps_cache = True, keep_cache
        if not keep_cache:
            self._core.reset_prefix_cache(reset_running_requests=True)

    def _resume(self) -> None:
        self._paused, self._keeps_cache = False, False

    def _set_version(self, version: PolicyVersion) -> None:
        if not self._keeps_cache and not self._core.reset_prefix_cache():
            raise EngineError(
                "vLLM kept its prefix cache: a request still runs", fix="end all requests first"
            )
        self._version = version
        for sampled in self._running.values():
            sampled.since.append((len(sampled.tokens), version))


def _parameters(sampled: Sampled, end_tokens: Sequence[int]) -> SamplingParams:
    sampling = sampled.request.sampling
    return SamplingParams(
        max_tokens=sampling.max_response_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=[*end_tokens, *sampling.stop_token_ids],
        logprobs=0,
        detokenize=False,
        extra_args={SEED: sampled.seed},
    )


def _complete(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
