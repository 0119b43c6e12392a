"""Gradients and parameters of Megatron's buckets between data-parallel ranks of one host, without sockets."""

from collections.abc import Sequence
from typing import Any

from hybridrl.trainer.megatron.model import Stage
from hybridrl.trainer.megatron.schedule import bucket_groups
from hybridrl.trainer.shared_buffers import SharedBuffer, share


def share_buckets(stage: Stage) -> None:
    """Let the groups whose ranks are all on this host sum and gather through shared memory. *Collective*.

    The others stay as they are. Gradients must be summed, not averaged, and not while the backward pass
    runs; the buffers must stay where they are.
    """
    for group in bucket_groups(stage):
        ranks, buckets = group.intra_distributed_optimizer_instance_group, group.buckets
        if ranks.size() == 1:
            continue
        assert all(bucket.gradient_scaling_factor == 1.0 for bucket in buckets)
        buffers = [(bucket.grad_data, bucket.param_data) for bucket in buckets]
        shared = share(ranks, [buffer for pair in buffers for buffer in pair])
        if shared is not None:
            exchange = _Exchange(shared[::2], shared[1::2])
            group.start_grad_sync = exchange.sum_gradients
            group.start_param_sync = exchange.gather_parameters


class _Exchange:
    """The two collectives of a bucket group, with the arguments of Megatron's methods."""

    def __init__(self, gradients: Sequence[SharedBuffer], parameters: Sequence[SharedBuffer]) -> None:
        self._gradients, self._parameters = gradients, parameters

    def sum_gradients(self, force_all_reduce: bool | None = False) -> None:
        for buffer in self._gradients:
            buffer.reduce_scatter()
            if force_all_reduce:
                buffer.all_gather()

    def gather_parameters(self, force_sync: bool = False, **unused: Any) -> None:
        for buffer in self._parameters:
            buffer.all_gather()
