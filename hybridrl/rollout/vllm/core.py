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
from hybridrl.rollout.vllm.sampler import SEED
from hybridrl.types import Finish, PolicyVersion, Sampling

_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(slots=True)
class Sampled:
    """An answer that grows."""

    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    since: list[tuple[int, PolicyVersion]] = field(default_factory=list)
    """(index of a token, version that sampled it and the following ones)."""

    finish: Finish | None = None

    @property
    def version_T(self) -> np.ndarray:
        """Version of the weights that sampled each token, int32."""
        start = [at for at, _ in self.since]
        lengths = np.diff([*start, len(self.tokens)])
        return np.repeat(np.array([version for _, version in self.since], np.int32), lengths)


class Core:
    def __init__(
        self,
        arguments: dict[str, Any],
        end_tokens: Sequence[int],
        version: PolicyVersion,
        failed: Callable[[], None],
    ) -> None:
        """Start vLLM, which takes 5 seconds for a small model, not counting its import.

        Args:
            arguments: of vLLM's EngineArgs.
            end_tokens: the model's own tokens that end an answer.
            version: version of the first answers.
            failed: called in another thread when vLLM cannot go on.
        """
        config = EngineArgs(**arguments).create_engine_config()
        if not torch.cuda.is_available():
            # vLLM has just set "spawn". A fork has the modules loaded already, which saves half of the start.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        self._failed = failed
        self._core = EngineCore(config, Executor.get_class(config), False, executor_fail_callback=failed)
        self._end_tokens, self._version = tuple(end_tokens), version
        self.vocab_size: int = config.model_config.get_vocab_size()
        self._ids = map(str, itertools.count())
        self._running: dict[str, tuple[Sampled, Callable[[], None]]] = {}
        self._paused = False
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

    async def sample(self, answers: Sequence[Sampled], sampling: Sampling, first_seed: int) -> None:
        """Wait until these answers have ended. Answer i is drawn with first_seed + i."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        left = itertools.count(len(answers) - 1, -1)

        def ended() -> None:
            if next(left) == 0:
                loop.call_soon_threadsafe(_complete, future, None)

        self._ask(partial(self._add_all, answers, sampling, first_seed, ended))
        await future

    async def abort(self, answers: Sequence[Sampled]) -> None:
        await self.call(self._abort, answers)

    async def pause(self, *, keep_cache: bool) -> None:
        await self.call(self._pause, keep_cache)

    async def resume(self) -> None:
        await self.call(self._resume)

    async def set_version(self, version: PolicyVersion, *, keep_cache: bool = False) -> None:
        """The weights are those of `version` from now on.

        Raises:
            EngineError: vLLM kept its prefix cache, because a request runs.
        """
        await self.call(self._set_version, version, keep_cache)

    async def release_cache(self) -> None:
        await self.call(self._core.reset_prefix_cache)
        await self.call(self._core.model_executor.sleep, 1)

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
        sampled, ended = self._running[output.request_id]
        if output.new_token_ids:
            assert output.new_logprobs is not None, "log-probabilities are asked for"
            sampled.tokens += output.new_token_ids
            sampled.logps += output.new_logprobs.logprobs[:, 0].tolist()
        if output.finish_reason is not None:
            self._end(output.request_id, sampled, str(output.finish_reason), ended)

    def _end(self, request: str, sampled: Sampled, reason: str, ended: Callable[[], None]) -> None:
        if reason not in _FINISH:
            raise EngineError(f"vLLM ended a request with {reason!r}")
        sampled.finish = _FINISH[reason]
        del self._running[request]
        ended()

    def _add_all(
        self, answers: Sequence[Sampled], sampling: Sampling, first_seed: int, ended: Callable[[], None]
    ) -> None:
        for i, sampled in enumerate(answers):
            request = EngineCoreRequest(
                request_id=next(self._ids),
                prompt_token_ids=list(sampled.prompt),
                mm_features=None,
                sampling_params=_parameters(sampling, first_seed + i, self._end_tokens),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
            sampled.since.append((0, self._version))
            self._running[request.request_id] = sampled, ended
            self._core.add_request(*self._core.preprocess_add_request(request))

    def _abort(self, answers: Sequence[Sampled]) -> None:
        wanted = set(map(id, answers))
        for request, (sampled, ended) in list(self._running.items()):
            if id(sampled) in wanted:
                self._core.abort_requests([request])
                self._end(request, sampled, "abort", ended)

    def _pause(self, keep_cache: bool) -> None:
        self._paused = True
        if not keep_cache:
            self._core.reset_prefix_cache(reset_running_requests=True)

    def _resume(self) -> None:
        self._paused = False

    def _set_version(self, version: PolicyVersion, keep_cache: bool) -> None:
        if not keep_cache and not self._core.reset_prefix_cache():
            raise EngineError(
                "vLLM kept its prefix cache: a request still runs", fix="end all requests first"
            )
        self._version = version
        for sampled, _ in self._running.values():
            sampled.since.append((len(sampled.tokens), version))


def _parameters(sampling: Sampling, seed: int, end_tokens: Sequence[int]) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_response_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_token_ids=[*end_tokens, *sampling.stop_token_ids],
        logprobs=0,
        detokenize=False,
        extra_args={SEED: seed},
    )


def _complete(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
