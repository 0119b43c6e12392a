"""Runs microbatches through Megatron's pipeline schedules.

Gradients are summed over microbatches and data-parallel ranks and divided by nothing: every loss is a
microbatch's share of a global mean already. A rank without trained tokens only takes part in that sum, unless
others need its layers: it then runs idle microbatches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.distributed.param_and_grad_buffer import shard_buffer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.trainer.megatron.model import Stage, forward, named_parameters
from hybridrl.trainer.packing import Microbatch, TokenPartition, idle_microbatch

NO_COUNT = torch.zeros((), dtype=torch.int)
"""In the place of a number of tokens, by which Megatron could divide: see sum_gradients."""


def sum_gradients(stage: Stage, num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's last act of a backward pass, without its division by a number of tokens."""
    finalize_model_grads(cast(Any, stage), None, **groups)


def filled(
    stage: Stage, microbatches: Sequence[Microbatch], partition: TokenPartition, least: int = 0
) -> list[Microbatch]:
    """With idle ones at the end, where the count has to be one that suits all ranks. *Collective*."""
    config: TransformerConfig = stage[0].config
    device, count = next(stage[0].parameters()).device, max(len(microbatches), least)
    if config.expert_model_parallel_size > 1 or config.expert_tensor_parallel_size > 1:
        most = torch.tensor(count, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX, parallel_state.get_data_parallel_group())
        count = int(most)
    if len(stage) > 1:
        count += -count % config.pipeline_model_parallel_size  # chunks take turns in rounds of that many
    idle = [idle_microbatch(partition, device) for _ in range(count - len(microbatches))]
    return [*microbatches, *idle]


def run(
    stage: Stage,
    microbatches: Sequence[Microbatch],
    finish: Callable[..., Any],
    **options: Any,
) -> list[Any]:
    def forward_step(feed: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        microbatch = next(feed)
        return forward(model, microbatch), partial(finish, microbatch)

    config: TransformerConfig = stage[0].config
    config.finalize_model_grads_func = sum_gradients
    config.no_sync_func = _without_sum(stage)
    feeds = [iter(microbatches) for _ in stage]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=feeds if len(stage) > 1 else feeds[0],
        model=cast(Any, stage),
        num_microbatches=len(microbatches),
        seq_length=1,  # of no effect: pipeline stages tell each other the shapes
        micro_batch_size=1,
        **options,
    )


def _without_sum(stage: Stage) -> Callable[[], Any]:
    """Inside, backward passes leave gradients on their rank; the last microbatch is outside."""

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            for chunk in stage:
                stack.enter_context(chunk.no_sync())
            yield

    return context


def whole_gradients(stage: Stage) -> dict[str, Tensor]:
    """Views of the gradient buffers, fp32, by the names of `named_parameters`. *Collective*, all ranks.

    The distributed optimizer leaves each data-parallel rank with its part of the sum only. Called after the
    backward pass and before gradients are clipped; repeating it changes nothing.
    """
    for group in _bucket_groups(stage):
        _gather(group)
    parameters: Iterator[tuple[str, Any]] = named_parameters(stage)
    return {name: parameter.main_grad for name, parameter in parameters if parameter.requires_grad}


def gradient_buffers(stage: Stage) -> Iterator[Tensor]:
    """Of every parameter that is trained."""
    for chunk in stage:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield buffer.grad_data


def _bucket_groups(stage: Stage) -> Iterator[Any]:
    for chunk in stage:
        yield from chunk.bucket_groups
        yield from chunk.expert_parallel_bucket_groups


def _gather(group: Any) -> None:
    """Every rank's part of each bucket, to all ranks that share the bucket."""
    ranks, size = (
        group.intra_distributed_optimizer_instance_group,
        group.intra_distributed_optimizer_instance_size,
    )
    for bucket in group.buckets:
        own = shard_buffer(bucket.grad_data, size)[group.intra_distributed_optimizer_instance_rank]
        dist.all_gather_into_tensor(bucket.grad_data, own.clone(), group=ranks)
