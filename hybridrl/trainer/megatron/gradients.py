"""The gradients of a minibatch, whole on every rank that holds the parameter.

The distributed optimizer leaves each data-parallel rank with its part of the sum only.
"""

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from megatron.core.distributed.param_and_grad_buffer import shard_buffer
from torch import Tensor

from hybridrl.trainer.megatron.model import Stage, named_parameters


def whole_gradients(stage: Stage) -> dict[str, Tensor]:
    """Views of the gradient buffers, fp32, by the names of `named_parameters`. *Collective*, all ranks.

    Called after the backward pass and before gradients are clipped; repeating it changes nothing.
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
