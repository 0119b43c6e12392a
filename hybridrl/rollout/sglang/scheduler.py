"""What runs in an engine's scheduler processes: SGLang's scheduler with two more remote calls, and the seeded sampler.

The calls go through SGLang's collective_rpc and not through a custom weight loader: that one needs an open update session,
which restores and reprocesses weights around it, and an exception in it ends the process.
"""

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_parallel
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from torch import Tensor, nn

from hybridrl.errors import EngineError
from hybridrl.rollout.sglang import receive
from hybridrl.rollout.sglang.draw import draw, truncated


def run(*args: Any, **kwargs: Any) -> None:
    """Entry point of a scheduler process, in place of SGLang's own."""
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler", RolloutScheduler, HookType.REPLACE)
    HookRegistry.register("sglang.srt.layers.sampler.Sampler", SeededSampler, HookType.REPLACE)
    HookRegistry.register(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch", _with_seeds
    )
    run_scheduler_process(*args, **kwargs)


class RolloutScheduler(Scheduler):
    """Every tensor-parallel rank writes its answer to `folder`/<rank>: SGLang returns no values, and errors of rank 0 only."""

    def export_parameters(self, folder: str) -> None:
        self._answer(folder, receive.export_parameters)

    def checksums(self, folder: str) -> None:
        self._answer(folder, receive.checksums)

    def _answer(self, folder: str, question: Callable[[nn.Module], Any]) -> None:
        try:
            runner = self.tp_worker.model_runner
            if not isinstance(runner.sampler, SeededSampler):
                raise EngineError(
                    f"SGLang samples with {type(runner.sampler).__name__}, its hooks did not take hold"
                )
            found = question(runner.model)
        except Exception as error:  # a process edge: the caller gets it
            found = EngineError(f"{type(error).__name__}: {error}", where=traceback.format_exc())
        Path(folder, str(get_parallel().tp_rank)).write_bytes(pickle.dumps(found))


def _with_seeds(info: SamplingBatchInfo, *args: Any) -> SamplingBatchInfo:
    """Hand requests' seeds to the sampler; SGLang does so only in its deterministic mode, which needs GPU kernels."""
    batch = args[1]
    if info.sampling_seed is None:
        seeds = [request.sampling_params.sampling_seed or 0 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
    return info


class SeededSampler(Sampler):
    def _sample_from_probs(
        self, probs: Tensor, sampling_info: SamplingBatchInfo, positions: Tensor, simple_sampling_case: bool
    ) -> tuple[Tensor, None]:
        seed, position = sampling_info.sampling_seed, positions.long()
        if simple_sampling_case:
            return draw(probs, seed, position).int(), None
        min_p = sampling_info.min_ps if sampling_info.need_min_p_sampling else None
        weight, token = truncated(probs, sampling_info.top_ks, sampling_info.top_ps, min_p)
        column = draw(weight, seed, position)
        return token.gather(1, column[:, None]).flatten().int(), None
