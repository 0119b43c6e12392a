"""What ranks of one group do with shared buffers in tests, beside what gloo does with copies of them."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.trainer import shared_buffers
from hybridrl.trainer.shared_buffers import share


def drawn(rank: int, shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randn(shape, generator=draw).to(dtype)


def summed_and_gathered(
    group: dist.ProcessGroup, sizes: Sequence[int], dtype: torch.dtype, rounds: int = 2
) -> list[list[Tensor]]:
    """Buffers after a sum and after a gather, in each round: of ours, then gloo's. Both are views of one."""
    rank, found = group.rank(), []
    whole = torch.zeros(sum(sizes), dtype=dtype)
    buffers = list(whole.split(list(sizes)))
    shared = share(group, buffers)
    assert shared is not None
    for seed in range(rounds):
        for buffer in buffers:
            buffer.copy_(drawn(rank, len(buffer), dtype, seed))
        reference = [buffer.clone() for buffer in buffers]
        for buffer, ours in zip(reference, shared, strict=True):
            ours.reduce_scatter()
            own = buffer.chunk(group.size())[rank]
            dist.reduce_scatter_tensor(own, buffer.clone(), group=group)
        found.append([whole.clone(), torch.cat(reference)])
        for buffer, ours in zip(reference, shared, strict=True):
            ours.all_gather()
            dist.all_gather_into_tensor(buffer, buffer.chunk(group.size())[rank].clone(), group=group)
        found.append([whole.clone(), torch.cat(reference)])
    return found


def shares_with_free(group: dist.ProcessGroup, free: int) -> tuple[bool, list[str]]:
    """Whether buffers are shared if the rank 1 sees so many free bytes, and the warnings."""
    if group.rank() == 1:
        shared_buffers._free_bytes = lambda: free
    buffer = torch.ones(1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        shared = share(group, [buffer])
    assert float(buffer.sum()) == 1000.0
    return shared is not None, [str(warning.message) for warning in said]


kept: dict[str, Any] = {}


def begin(group: dist.ProcessGroup) -> None:
    shared = share(group, [torch.ones(3000)])
    assert shared is not None
    kept["buffer"] = shared[0]


def go_on(group: dist.ProcessGroup) -> str:
    """The error of a sum in which not all ranks take part."""
    try:
        kept["buffer"].reduce_scatter()
    except RuntimeError as error:
        return str(error)
    return "none"
