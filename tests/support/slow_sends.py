"""A pipeline whose stages are joined by a slow network."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from trainer_scenarios import train


def train_with_slow_sends(rank: int, *args: Any, **changes: Any) -> list[dict[str, Any]]:
    """As `train`, with pipeline stages whose asynchronous sends leave 30 ms after they were posted."""
    import torch.distributed as dist
    from megatron.core.pipeline_parallel import p2p_communication

    wire, operations, plain = ThreadPoolExecutor(1), p2p_communication._p2p_ops, (dist.isend, dist.irecv)
    dist_functions = cast(Any, dist)

    class Posted:
        def __init__(self, tensor: Any, destination: int, group: Any) -> None:
            self._sent = wire.submit(self._send, tensor, destination, group)

        def _send(self, *message: Any) -> None:
            time.sleep(0.03)
            cast(Any, plain[0](*message, tag=1)).wait()  # the other messages of the group have tag 0

        def wait(self) -> None:
            self._sent.result()

    def slow_operations(**message: Any) -> Any:
        dist_functions.isend = lambda tensor, dst, group: Posted(tensor, dst, group)
        dist_functions.irecv = lambda tensor, src, group: plain[1](tensor, src, group, tag=1)
        try:
            return operations(**message)
        finally:
            dist_functions.isend, dist_functions.irecv = plain

    p2p_communication._p2p_ops = slow_operations
    return train(rank, *args, **changes)
