"""Communication between trainer ranks besides gradients: columns and metrics."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from hybridrl.algorithms.base import Metrics

Value = TypeVar("Value")


class Mesh:
    """A rank's position among the others; an algorithms.base.Reduce over the data-parallel ranks."""

    def __init__(self, dp: dist.ProcessGroup, pp: dist.ProcessGroup | None = None) -> None:
        """
        Args:
            dp: ranks that hold the same part of the model and train on other trajectories.
            pp: the pipeline stages; None if there is one stage.
        """
        self._dp, self._pp = dp, pp if pp is not None and pp.size() > 1 else None
        self.dp_rank = dp.rank()
        self.is_last_stage = self._pp is None or self._pp.rank() == self._pp.size() - 1

    def sum(self, value: Tensor) -> Tensor:
        return self._all_reduce(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        return self._all_reduce(value, dist.ReduceOp.MAX)

    def _all_reduce(self, value: Tensor, operation: Any) -> Tensor:
        result = value.clone()
        dist.all_reduce(result, operation, self._dp)
        return result

    def from_last_stage(self, value: Value) -> Value:
        """The value that the last pipeline stage passes, on every stage. *Collective* over the pipeline."""
        if self._pp is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_process_group_ranks(self._pp)[-1], group=self._pp)
        return box[0]

    def combine(self, shares: Sequence[Metrics]) -> dict[str, float]:
        """Metrics of the whole minibatch, from those of each rank's microbatches. *Collective*, all ranks.

        Ranks may pass different metrics: a rank without trained tokens passes none.
        """
        total = Metrics()
        for share in shares:
            total = total.merge(share)
        local = ({n: float(v) for n, v in total.sum.items()}, {n: float(v) for n, v in total.max.items()})
        parts: list[Any] = [local]
        if self._dp.size() > 1:
            parts = [None] * self._dp.size()
            dist.all_gather_object(parts, local, group=self._dp)
        return self.from_last_stage(_merge(parts))


def _merge(parts: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    largest: dict[str, float] = {}
    for part_sums, part_largest in parts:
        for name, value in part_sums.items():
            sums[name] = sums.get(name, 0.0) + value
        for name, value in part_largest.items():
            largest[name] = max(largest.get(name, value), value)
    return sums | largest
