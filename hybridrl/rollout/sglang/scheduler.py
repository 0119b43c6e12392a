"""SGLang's scheduler with additional remote calls and our hooks, in the scheduler processes of an engine.

The calls use SGLang's collective_rpc. A custom weight loader would need an open update session, which
restores and reprocesses weights, and an exception in it would end the process.
"""

import gc
import itertools
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process
from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_parallel, get_serving
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from hybridrl.errors import EngineError, HybridRLError
from hybridrl.hosts import matmul, stacks
from hybridrl.rollout.sglang import receive
from hybridrl.rollout.sglang.arguments import has_cuda
from hybridrl.rollout.sglang.hooks import (
    BatchedAttention,
    SeededSampler,
    unpadded,
    weights_stay,
    with_seeds,
    without_cache_scales,
    without_pinning,
)
from hybridrl.rollout.sglang.operations import normalised, rotated
from hybridrl.rollout.sglang.probe import probe_loader

_SRT = "sglang.srt"


def run(*args: Any, **kwargs: Any) -> None:
    """Entry point of a scheduler process, in place of SGLang's own."""
    stacks.answer()
    _replace("managers.scheduler.Scheduler", RolloutScheduler)
    if has_cuda():
        saver = f"{_SRT}.utils.torch_memory_saver_adapter._TorchMemorySaverAdapterReal"
        HookRegistry.register(f"{saver}.region", weights_stay, HookType.AROUND)
        filled = f"{_SRT}.model_loader.loader.initialize_dummy_weights"
        HookRegistry.register(filled, without_cache_scales, HookType.AROUND)
    else:
        matmul.install()
        ALLOC_MEMORY_FUNCS["cpu"] = without_pinning
        _replace("layers.attention.torch_native_backend.TorchNativeAttnBackend", BatchedAttention)
        _replace("layers.sampler.Sampler", SeededSampler)
        for name, ours in (
            ("layernorm.RMSNorm", normalised),
            ("rotary_embedding.base.RotaryEmbedding", rotated),
        ):
            HookRegistry.register(f"{_SRT}.layers.{name}.forward_native", ours, HookType.AROUND)
        _replace("configs.update_config.adjust_config_with_unaligned_cpu_tp", unpadded)
        batch = f"{_SRT}.sampling.sampling_batch_info.SamplingBatchInfo"
        HookRegistry.register(f"{batch}.from_schedule_batch", with_seeds, HookType.AFTER)
    HookRegistry.apply_hooks()
    run_scheduler_process(*args, **kwargs)


def _replace(name: str, replacement: Callable[..., Any]) -> None:
    HookRegistry.register(f"{_SRT}.{name}", replacement, HookType.REPLACE)


class RolloutScheduler(Scheduler):
    """A scheduler whose remote calls exchange arguments and answers through files.

    The arguments are in `folder`/arguments, because SGLang passes only strings and numbers. The first rank
    writes the answers of all ranks to `folder`/answers, because SGLang returns errors of that rank only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        matmul.pack(self.tp_worker.model_runner.model)
        # SGLang collects garbage at every cache flush on CPU. Without this, it would scan all objects of the
        # imports, which takes 0.5 s.
        gc.collect()
        gc.freeze()
        self._recomputing_s = 0.0
        self._stop_tokenizer: Any = None

    def handle_generate_request(self, recv_req: Any, **options: Any) -> None:
        """Take a request. One with stop strings gets a tokenizer, which this engine has for nothing else."""
        options_of = recv_req.sampling_params
        if stop := (options_of.custom_params or {}).get("stop"):
            options_of.stop_strs, options_of.stop_str_max_len = stop, max(map(len, stop))
            self._stop_tokenizer = self._stop_tokenizer or get_tokenizer(get_serving().tokenizer_path)
            self.tokenizer = self._stop_tokenizer
        try:
            super().handle_generate_request(recv_req, **options)
        finally:
            self.tokenizer = None

    def run_batch(self, batch: ScheduleBatch, *args: Any, **options: Any) -> Any:
        """Run a batch, and time what it computes again for requests that were retracted."""
        again = [bool(req.output_ids) for req in batch.reqs] if batch.forward_mode.is_extend() else []
        start = time.perf_counter()
        result = super().run_batch(batch, *args, **options)
        if any(again):
            lengths = [len(req.origin_input_ids) + len(req.output_ids) for req in batch.reqs]
            share = sum(itertools.compress(lengths, again)) / sum(lengths)
            self._recomputing_s += share * (time.perf_counter() - start)
        return result

    def abort_request(self, recv_req: AbortReq) -> None:
        """Abort a request and report all of its tokens.

        SGLang reports a waiting request with the tokens of its last output, up to about fifty behind; a
        paused request has sampled more than that.
        """
        begun = [req for req in self.waiting_queue if req.output_ids and req.rid.startswith(recv_req.rid)]
        self.waiting_queue = [req for req in self.waiting_queue if req not in begun]
        for req in begun:
            req.finished_reason = FINISH_ABORT()
            self._release_aborted_request(req)
            self.output_streamer.stream_output([req], req.return_logprob)
        super().abort_request(recv_req)

    def paused(self, folder: str) -> None:
        """Whether nothing is sampled until the end of a pause, and the seconds of recomputation until now."""
        if has_cuda():
            torch.cuda.synchronize()  # the last batch may have been started and not yet collected
        spent_s = None if has_cuda() else self._recomputing_s  # on a GPU, batches run behind their start
        self._answer(folder, lambda runner: (self._engine_paused, spent_s))

    def export_parameters(self, folder: str) -> None:
        self._answer(folder, lambda runner: receive.export_parameters(runner.model))

    def checksums(self, folder: str) -> None:
        self._answer(folder, lambda runner: receive.checksums(runner.model))

    def derives(self, folder: str) -> None:
        self._answer(folder, lambda runner: receive.derives(runner.model))

    def derive(self, folder: str) -> None:
        self._answer(folder, lambda runner: receive.derive(runner.model))

    def probe_loader(self, folder: str) -> None:
        (layout,) = self._arguments(folder)
        self._answer(folder, lambda runner: probe_loader(runner.model, layout, get_parallel().tp_rank))

    def load_bucket(self, folder: str) -> None:
        bucket, buffer, first, last = self._arguments(folder)
        self._answer(
            folder,
            lambda runner: receive.load_bucket(runner.weight_updater, bucket, buffer, first=first, last=last),
        )

    def _answer(self, folder: str, question: Callable[[Any], Any]) -> None:
        """Call `question` on every rank; the first rank writes all answers or errors to the file.

        Args:
            question: function of SGLang's ModelRunner.
        """
        try:
            runner = self.tp_worker.model_runner
            if not has_cuda():
                _expect(runner.sampler, SeededSampler)
                _expect(runner.attn_backend, BatchedAttention)
            found = question(runner)
        except HybridRLError as error:
            found = error
        except Exception as error:  # process boundary: the caller gets the error
            found = EngineError(f"{type(error).__name__}: {error}", where=traceback.format_exc())
        answers = [found] * get_parallel().tp_size
        first = dist.get_global_rank(self.tp_cpu_group, 0)
        is_first = get_parallel().tp_rank == 0
        dist.gather_object(found, answers if is_first else None, first, self.tp_cpu_group)
        if is_first:
            Path(folder, "answers").write_bytes(pickle.dumps(answers))

    def _arguments(self, folder: str) -> tuple[Any, ...]:
        """The arguments of a call, which the first rank reads and broadcasts."""
        is_first = get_parallel().tp_rank == 0
        box = [pickle.loads(Path(folder, "arguments").read_bytes()) if is_first else None]
        dist.broadcast_object_list(box, dist.get_global_rank(self.tp_cpu_group, 0), self.tp_cpu_group)
        assert box[0] is not None, "the first rank has read the arguments"
        return box[0]


def _expect(found: object, kind: type) -> None:
    """Check that a hook took effect; SGLang itself only logs if it did not."""
    if not isinstance(found, kind):
        raise EngineError(
            f"SGLang runs {type(found).__name__} in place of {kind.__name__}",
            fix="use the SGLang of requirements/",
        )
