"""Runs microbatches through Megatron's pipeline schedules.

Gradients are summed over microbatches and data-parallel ranks and not divided: every loss is a microbatch's
share of a global mean already. A rank without trained tokens only takes part in this reduction. It runs idle
microbatches if other ranks need its layers (expert parallelism, interleaved schedules).
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
from hybridrl.trainer.packing import idle_microbatch
from hybridrl.trainer.places import Microbatch, TokenPartition

NO_COUNT = torch.zeros((), dtype=torch.int)
"""Placeholder for the number of tokens that Megatron's schedules expect; see sum_gradients."""


def sum_gradients(stage: Stage, num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's finalize_model_grads without its division by the number of tokens."""
    finalize_model_grads(cast(Any, stage), None, **groups)


def filled(
    stage: Stage, microbatches: Sequence[Microbatch], partition: TokenPartition, least: int = 0
) -> list[Microbatch]:
    """The microbatches, followed by as many idle ones as the schedule needs on this rank. *Collective*.

    Args:
        least: smallest number of microbatches.
    """
    config: TransformerConfig = stage[0].config
    device, count = next(stage[0].parameters()).device, max(len(microbatches), least)
    if config.expert_model_parallel_size > 1 or config.expert_tensor_parallel_size > 1:
        most = torch.tensor(count, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX, parallel_state.get_data_parallel_group())
        count = int(most)
    if len(stage) > 1:
        count += -count % config.pipeline_model_parallel_size  # interleaving runs groups of this many
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
        seq_length=1,  # not used: pipeline stages exchange the shapes
        micro_batch_size=1,
        **options,
    )


def _without_sum(stage: Stage) -> Callable[[], Any]:
    """Megatron's no_sync: a context in which backward passes do not reduce gradients over ranks.

    The schedule runs all but the last microbatch in it.
    """

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            for chunk in stage:
                stack.enter_context(chunk.no_sync())
            yield

    return context


def whole_gradients(stage: Stage) -> dict[str, Tensor]:
    """Whole gradients: views of the gradient buffers, fp32, by the names of `named_parameters`. *Collective*.

    The distributed optimizer leaves only a shard of the summed gradients on each data-parallel rank, so
    shards are gathered here. Call this after the backward pass and before clipping; a second call changes
    nothing.
    """
    for group in bucket_groups(stage):
        _gather(group)
    parameters: Iterator[tuple[str, Any]] = named_parameters(stage)
    return {name: parameter.main_grad for name, parameter in parameters if parameter.requires_grad}


def gradient_buffers(stage: Stage) -> Iterator[Tensor]:
    """Gradient buffers of all trained parameters."""
    for chunk in stage:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield buffer.grad_data


def bucket_groups(stage: Stage) -> Iterator[Any]:
    for chunk in stage:
        yield from chunk.bucket_groups
        yield from chunk.expert_parallel_bucket_groups


def _gather(group: Any) -> None:
    """Gather each bucket from the shards of all ranks that share it."""
    ranks, size = (
        group.intra_distributed_optimizer_instance_group,
        group.intra_distributed_optimizer_instance_size,
    )
    for bucket in group.buckets:
        own = shard_buffer(bucket.grad_data, size)[group.intra_distributed_optimizer_instance_rank]
        dist.all_gather_into_tensor(bucket.grad_data, own.clone(), group=ranks)
