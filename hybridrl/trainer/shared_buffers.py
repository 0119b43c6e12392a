"""Sums and gathers between ranks of one host, through memory that all of them map.

Gloo sends every byte through a socket. Here a rank reads the buffers of the others where they are, and
writes into its own. Who waits for whom: every collective begins and ends with a barrier of the group. After
the first, the others have written what this rank reads; after the second, nobody reads any more, and each
may write again. The barriers are gloo's, so a rank that is late, lost or elsewhere is the error of any other
collective, after the same deadline.
"""

import os
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.errors import ResourceError
from hybridrl.reshard.same_host import neighbours
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import SharedTensor

_PIECE = 1 << 16
"""Elements that are summed at once, so that a partial sum stays in the cache."""

_MOST_OF_FREE = 0.5
"""Share of the free shared memory that the ranks of a group take; engines need some too."""

_PAGE_BYTES = 4096


class SharedBuffer:
    """A buffer that every rank of a group has, cut into one equal share per rank. Methods are *collective*.

    Nobody may write into any of the buffers while ranks are in a method.
    """

    def __init__(self, group: dist.ProcessGroup, buffers: Sequence[Tensor]) -> None:
        """
        Args:
            buffers: those of all ranks, in their order, contiguous [N], N a multiple of the number of ranks.
        """
        self._group, self._rank = group, group.rank()
        self._shares = [buffer.chunk(len(buffers)) for buffer in buffers]
        """Buffer of a rank, then share."""

    def reduce_scatter(self) -> None:
        """Write the sum of this rank's share over all ranks into it; the other shares stay as they are.

        The sum is taken in the order of ranks, at least in fp32, and rounded once.
        """
        terms = [shares[self._rank].split(_PIECE) for shares in self._shares]
        own = terms[self._rank]
        precise = torch.promote_types(own[0].dtype, torch.float32)
        partial = torch.empty(_PIECE, dtype=precise)
        dist.barrier(self._group)
        for piece, (first, *others) in zip(own, zip(*terms, strict=True), strict=True):
            total = partial[: len(piece)].copy_(first)
            for other in others:
                total += other
            piece.copy_(total)
        dist.barrier(self._group)

    def all_gather(self) -> None:
        """Copy the share of every other rank from that rank's buffer."""
        own = self._shares[self._rank]
        dist.barrier(self._group)
        for rank, shares in enumerate(self._shares):
            if rank != self._rank:
                own[rank].copy_(shares[rank])
        dist.barrier(self._group)


def share(group: dist.ProcessGroup, buffers: Sequence[Tensor]) -> list[SharedBuffer] | None:
    """Move buffers to memory that all ranks of the group map. *Collective*; every rank returns the same kind.

    Args:
        buffers: of this rank, contiguous, as many and as long on every rank. They are moved in place: views
            of them stay valid, and their pages are there afterwards.

    Returns:
        None if the ranks are not on one host, or if its shared memory is too small, which is a warning.
    """
    if not _all(group, len(neighbours(group)) == group.size() - 1):
        return None
    size = sum(tensor.untyped_storage().nbytes() for tensor in _one_per_storage(buffers)) * group.size()
    exported = _exported(buffers) if _all(group, size <= _MOST_OF_FREE * _free_bytes()) else None
    if not _all(group, exported is not None):
        warnings.warn(
            f"the {group.size()} ranks of this host pass gradients through sockets: /dev/shm has "
            f"{_free_bytes() / 2**30:.1f} GiB free, and twice their {size / 2**30:.1f} GiB are needed",
            stacklevel=2,
        )
        return None
    told = [exported] * group.size()
    dist.all_gather_object(told, exported, group=group)
    mapped = [list(buffers) if rank == group.rank() else _mapped(told[rank]) for rank in range(len(told))]
    dist.barrier(group)  # a buffer can be mapped only while its owner lives
    return [SharedBuffer(group, of_ranks) for of_ranks in zip(*mapped, strict=True)]


def _exported(buffers: Sequence[Tensor]) -> list[SharedTensor] | None:
    try:
        return [shm.export(buffer) for buffer in buffers]
    except ResourceError:
        return None


def _mapped(exported: Sequence[SharedTensor] | None) -> list[Tensor]:
    assert exported is not None, "all ranks agreed that all have exported theirs"
    buffers = [shm.attach(shared) for shared in exported]
    for buffer in buffers:
        buffer.view(torch.uint8)[::_PAGE_BYTES].sum()  # maps the pages now, and not in the first step
    return buffers


def _one_per_storage(buffers: Sequence[Tensor]) -> list[Tensor]:
    return list({buffer.untyped_storage().data_ptr(): buffer for buffer in buffers}.values())


def _free_bytes() -> int:
    status = os.statvfs("/dev/shm")
    return status.f_bavail * status.f_frsize


def _all(group: dist.ProcessGroup, own: bool) -> bool:
    """Whether it is so on all ranks. *Collective*."""
    worst = torch.tensor(own, dtype=torch.int32)
    dist.all_reduce(worst, dist.ReduceOp.MIN, group)
    return bool(worst)
