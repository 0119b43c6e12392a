"""The process that hosts one sglang.Engine; engine.py starts it.

SGLang replaces signal handlers and the event loop policy of its process, kills all its children at shutdown, and ends the
process when a scheduler dies. So it gets a process of its own: what happens here reaches the caller as an EngineError.

Waits: on the caller (until it hangs up or dies, which ends the pipe), and on the schedulers.
"""

import asyncio
import contextlib
import pickle
import random
import shutil
import signal
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from sglang.srt.entrypoints import engine as sglang_engine
from sglang.srt.managers.io_struct import GenerateReqInput, ShutdownReq, UpdateWeightVersionReqInput

from hybridrl.batch import TokenBlock
from hybridrl.errors import EngineError
from hybridrl.hosts import sglang_cpu
from hybridrl.rollout.sglang import leftovers, scheduler
from hybridrl.rollout.sglang.channel import Callee
from hybridrl.rollout.sglang.engine import EngineSetup, Started
from hybridrl.types import Finish, PolicyVersion, Sampling

_EXIT_S = 10.0


class Engine(sglang_engine.Engine):
    run_scheduler_process_func = staticmethod(scheduler.run)

    @classmethod
    def _launch_scheduler_processes(cls, *args: Any, **kwargs: Any) -> Any:
        # SGLang's own handler kills this process at once, before anything can be cleaned up.
        signal.signal(signal.SIGQUIT, _scheduler_failed)
        return super()._launch_scheduler_processes(*args, **kwargs)

    @classmethod
    def _launch_detokenizer_subprocesses(cls, *args: Any, **kwargs: Any) -> Any:
        """None: without a tokenizer, schedulers send token ids straight here."""
        return [], []


def _scheduler_failed(number: int, frame: FrameType | None) -> None:
    raise EngineError("a scheduler failed while the engine started; its own words are above")


class Host:
    """The calls that the engine's owner may make; see SGLangEngine."""

    def __init__(self, setup: EngineSetup) -> None:
        arguments = sglang_cpu.engine_arguments(
            tp=setup.tp,
            seed=setup.seed,
            kv_cache_tokens=setup.kv_cache_tokens,
            memory_fraction=setup.memory_fraction,
            max_running_requests=setup.max_running_requests,
            context_tokens=setup.max_prompt_tokens + setup.max_response_tokens,
        )
        self._setup = setup
        self._engine = Engine(model_path=setup.model_folder, weight_version=str(setup.version), **arguments)
        self._unseeded = random.Random(setup.seed)

    @property
    def started(self) -> Started:
        return Started(self._engine.port_args.instance_id, self._engine.get_all_child_pids())

    async def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, version: PolicyVersion
    ) -> tuple[TokenBlock, list[Finish]]:
        """Rows in the order prompt by prompt, sample by sample."""
        repeated = [list(ids) for ids in prompts for _ in range(sampling.num_samples)]
        first = self._unseeded.getrandbits(62) if sampling.seed is None else sampling.seed
        shared = _sampling_parameters(sampling)
        request = GenerateReqInput(
            input_ids=repeated,
            sampling_params=[shared | {"sampling_seed": first + i} for i in range(len(repeated))],
            return_logprob=True,
        )
        answers = await anext(self._engine.tokenizer_manager.generate_request(request))
        described = [answer["meta_info"] for answer in answers]
        block = TokenBlock.from_answers(
            repeated,
            [answer["output_ids"] for answer in answers],
            [[logp for logp, *_ in answer["output_token_logprobs"]] for answer in described],
            version,
        )
        return block, [answer["finish_reason"]["type"] for answer in described]

    async def export_parameters(self) -> list[Any]:
        return self._ask_schedulers("export_parameters")

    async def checksums(self) -> list[Any]:
        return self._ask_schedulers("checksums")

    async def adopt(self, version: PolicyVersion) -> None:
        """The parameters are those of `version`: forget what was computed with the old ones.

        Raises:
            EngineError: a request still runs.
        """
        manager = self._engine.tokenizer_manager
        flushed = await manager.flush_cache()
        if not flushed.success:
            raise EngineError(
                "SGLang did not flush its prefix cache: a request still runs",
                fix="end all requests before a swap",
            )
        await manager.update_weight_version(
            UpdateWeightVersionReqInput(new_version=str(version), abort_all_requests=False)
        )

    def stop(self) -> None:
        """End the schedulers in good order, so that they give back what they hold."""
        manager = self._engine.tokenizer_manager
        schedulers = [psutil.Process(pid) for pid in self.started.pids if psutil.pid_exists(pid)]
        if manager._subprocess_watchdog is not None:
            manager._subprocess_watchdog.stop()
        manager._dispatch_to_scheduler(ShutdownReq())
        psutil.wait_procs(schedulers, timeout=_EXIT_S)

    def _ask_schedulers(self, method: str) -> list[Any]:
        """Every tensor-parallel rank's answer. Blocks the event loop: no request runs meanwhile."""
        with tempfile.TemporaryDirectory() as folder:
            self._engine.collective_rpc(method, folder=folder)
            answers = [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(self._setup.tp)]
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


def main(file_descriptor: int) -> None:
    connection = Connection(file_descriptor)
    setup, folder = connection.recv()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    started = Started("", [])
    try:
        host = Host(setup)
        started = host.started
        connection.send(started)
        try:
            loop.run_until_complete(Callee(connection, host).serve())
        finally:
            host.stop()
    finally:
        _end_children(started)
        shutil.rmtree(folder, ignore_errors=True)


def _end_children(started: Started) -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=_EXIT_S)
    leftovers.remove([*started.pids, *(child.pid for child in children)], started.name)
