"""What ranks tell each other beside gradients: columns and metrics."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from hybridrl.algorithms.base import Metrics
from hybridrl.trainer.megatron.context import gather_rows
from hybridrl.trainer.megatron.packing import Microbatch

Value = TypeVar("Value")


class DataParallelReduce:
    """algorithms.base.Reduce over the data-parallel ranks."""

    def sum(self, value: Tensor) -> Tensor:
        return self._all_reduce(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        return self._all_reduce(value, dist.ReduceOp.MAX)

    def _all_reduce(self, value: Tensor, operation: Any) -> Tensor:
        result = value.clone()
        dist.all_reduce(result, operation, parallel_state.get_data_parallel_group())
        return result


def from_context(microbatch: Microbatch, own_O: Tensor) -> Tensor:
    """Outputs for all trained tokens of a microbatch, [R, ...], from those that each rank has.

    *Collective* over context-parallel ranks; differentiable, if all of them go on to compute the same.
    """
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return own_O
    return gather_rows(own_O, microbatch.most_predicted, microbatch.from_R, group)


def from_last_stage(value: Value) -> Value:
    """What the last pipeline stage passes, on every stage. *Collective* over the pipeline."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return value
    box = [value]
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(box, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return box[0]


def combine(shares: Sequence[Metrics]) -> dict[str, float]:
    """Metrics of the whole minibatch from those of this rank's microbatches. *Collective* over all ranks.

    Ranks may have different metrics: one without trained tokens has none.
    """
    total = Metrics()
    for share in shares:
        total = total.merge(share)
    local = ({n: float(v) for n, v in total.sum.items()}, {n: float(v) for n, v in total.max.items()})
    parts: list[Any] = [local]
    if parallel_state.get_data_parallel_world_size() > 1:
        parts = [None] * parallel_state.get_data_parallel_world_size()
        dist.all_gather_object(parts, local, group=parallel_state.get_data_parallel_group())
    return from_last_stage(_merge(parts))


def _merge(parts: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    largest: dict[str, float] = {}
    for part_sums, part_largest in parts:
        for name, value in part_sums.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in part_largest.items():
            largest[name] = max(largest.get(name, value), value)
    return sums | largest
