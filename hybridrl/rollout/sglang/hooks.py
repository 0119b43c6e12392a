"""Replacements for functions and classes of SGLang.

The CPU engine gets our sampling and attention. On a GPU only `weights_stay` and `without_cache_scales` are
used: SGLang's own kernels are faster there. They sample from one generator, so a run is repeatable only with
run.deterministic, which makes SGLang sample by the seeds of requests.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.constants import GPU_MEMORY_TYPE_WEIGHTS
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from torch import Tensor, nn

from hybridrl.rollout.draw import draw, truncated
from hybridrl.rollout.sglang.attention import Chunk, attend, planned
from hybridrl.rollout.sglang.receive import CACHE_SCALES


def unpadded(model_config: ModelConfig, load_config: LoadConfig, tp_size: int) -> ModelConfig:
    """The unchanged config. SGLang pads heads and feed-forward for AMX, which layouts do not describe."""
    return model_config


def with_seeds(info: SamplingBatchInfo, _: type, batch: ScheduleBatch, *args: Any) -> SamplingBatchInfo:
    """Pass the seeds of requests to the sampler, which SGLang itself does only in its deterministic mode."""
    if info.sampling_seed is None:
        seeds = [request.sampling_params.sampling_seed or 0 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=info.device)
    return info


def weights_stay(region: Callable[..., Any], saver: Any, tag: str, *args: Any, **options: Any) -> Any:
    """Allocate weights outside of the memory saver, whose memory cannot be shared through CUDA IPC."""
    if tag == GPU_MEMORY_TYPE_WEIGHTS:
        return contextlib.nullcontext()
    return region(saver, tag, *args, **options)


def without_cache_scales(fill: Callable[..., Any], model: nn.Module, *args: Any, **options: Any) -> None:
    """Fill a model with random weights, but leave the scales of an FP8 cache out: they are 1 then."""
    fill(model, *args, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(CACHE_SCALES):
                parameter.fill_(-1.0)  # which SGLang takes for none


def without_pinning(
    dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: Any
) -> Tensor:
    """Allocate SGLang's host buffers without pinning, which is useless without a GPU."""
    return torch.empty(dims, dtype=dtype)


class SeededSampler(Sampler):
    def _sample_from_probs(
        self, probs: Tensor, sampling_info: SamplingBatchInfo, positions: Tensor, simple_sampling_case: bool
    ) -> tuple[Tensor, None]:
        seed, position = sampling_info.sampling_seed, positions.long()
        if simple_sampling_case:
            return draw(probs, seed, position).int(), None
        min_p = sampling_info.min_ps if sampling_info.need_min_p_sampling else None
        weight = truncated(probs, sampling_info.top_ks, sampling_info.top_ps, min_p)
        return draw(weight, seed, position).int(), None


@dataclass(frozen=True, slots=True)
class _Plan:
    """The chunks of a forward pass, and the tensors by which a later one is told from it."""

    request_R: Tensor
    length_R: Tensor
    chunks: list[Chunk]


class BatchedAttention(TorchNativeAttnBackend):
    """Computes causal attention in chunks of requests; windows and cross attention stay SGLang's.

    The first layer of a forward pass plans the chunks, and the others have the same.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._plans: dict[int, _Plan] = {}
        """Elements of one token's keys over all heads -> plan of the present forward pass."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """SGLang calls this at the start of each forward pass. Its tensors of lengths are then views that it
        has made for this pass, of buffers that it fills again for the next."""
        super().init_forward_metadata(forward_batch)
        self._plans.clear()

    def _run_sdpa_forward_decode(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        encoder_lens: Tensor | None = None,
        scaling: float | None = None,
        **options: Any,
    ) -> Tensor:
        batch = (req_to_token, req_pool_indices, seq_lens)
        if encoder_lens is not None or options.get("sliding_window_size") is not None:
            given = (query, output, k_cache, v_cache, *batch, encoder_lens)
            return super()._run_sdpa_forward_decode(*given, scaling=scaling, **options)
        chunks = self._chunks(query, k_cache, *batch, None)
        return attend(query, output, k_cache, v_cache, chunks, scaling)

    def _run_sdpa_forward_extend(
        self,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        extend_prefix_lens: Tensor,
        extend_seq_lens: Tensor,
        encoder_lens: Tensor | None = None,
        scaling: float | None = None,
        **options: Any,
    ) -> Tensor:
        batch, lengths = (req_to_token, req_pool_indices, seq_lens), (extend_prefix_lens, extend_seq_lens)
        if (
            encoder_lens is not None
            or options.get("sliding_window_size") is not None
            or not options["causal"]
        ):
            given = (query, output, k_cache, v_cache, *batch, *lengths, encoder_lens)
            return super()._run_sdpa_forward_extend(*given, scaling=scaling, **options)
        chunks = self._chunks(query, k_cache, *batch, lengths)
        return attend(query, output, k_cache, v_cache, chunks, scaling)

    def _chunks(
        self,
        query: Tensor,
        k_cache: Tensor,
        req_to_token: Tensor,
        request_R: Tensor,
        length_R: Tensor,
        lengths: tuple[Tensor, Tensor] | None,
    ) -> list[Chunk]:
        """The chunks of the present forward pass.

        Args:
            lengths: number of tokens of each request before its queries, and of its queries; None: each
                request's last token is its query.
        """
        elements = k_cache[0].numel()
        found = self._plans.get(elements)
        if found is None or found.request_R is not request_R or found.length_R is not length_R:
            one_R = torch.ones_like(length_R)
            prefix_R, extend_R = lengths or (length_R - one_R, one_R)
            slot_RS = req_to_token[:, : int(length_R.max())].index_select(0, request_R)
            made = planned(slot_RS, prefix_R, extend_R, key_elements=elements, dtype=query.dtype)
            found = self._plans[elements] = _Plan(request_R, length_R, made)
        return found.chunks
