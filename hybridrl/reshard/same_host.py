"""Messages between ranks of one host: they stay in the sender's buffer, and the receiver reads them there.

Only a signal that the message is ready is sent, and an acknowledgement that it was read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from hybridrl.errors import ResourceError
from hybridrl.reshard.rounds import Round
from hybridrl.reshard.transports import shm
from hybridrl.reshard.transports.base import SharedTensor

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Contains an id that differs between machines, whatever their host names are."""


def neighbours(group: dist.ProcessGroup) -> frozenset[int]:
    """Ranks whose memory this rank can map and that can map this rank's memory. *Collective*, on the CPU."""
    rank, size = group.rank(), group.size()
    probe = torch.zeros(1)
    here = _BOOT.read_text() if _BOOT.exists() else f"unknown machine of rank {rank}"
    told: list[tuple[str, SharedTensor]] = [(here, shm.export(probe))] * size
    dist.all_gather_object(told, told[rank], group=group)
    reached = torch.tensor([boot == here and _reaches(shared) for boot, shared in told])
    reaching = torch.empty(size, dtype=torch.bool)
    dist.all_to_all_single(reaching, reached, group=group)
    return frozenset((reached & reaching).nonzero().flatten().tolist()) - {rank}


class _Place(NamedTuple):
    """Position of a message in its sender's buffers."""

    buffer: int
    start: int
    stop: int


class _Told(NamedTuple):
    """What a rank tells its near peers about its messages to them."""

    buffers: list[SharedTensor]
    places: dict[int, list[_Place]]
    """Receiver -> positions of its messages, in the order of sending."""


def messages(
    group: dist.ProcessGroup, rounds: Sequence[Round], buffers: Sequence[torch.Tensor], near: frozenset[int]
) -> list[dict[int, torch.Tensor]]:
    """Messages of near peers to this rank, as views of the peers' memory. *Collective*.

    Args:
        buffers: the buffers that this rank packs its rounds into, in turn; they move to shared memory.

    Returns:
        One dictionary per round, with the keys of Round.near.

    Raises:
        ResourceError: shared memory is full.
    """
    rank = group.rank()
    shared = [shm.export(buffer) for buffer in buffers if near and buffer.nbytes]
    mine = _Told(shared, {peer: [] for peer in near})
    for number, round_ in enumerate(rounds):
        for peer, start, stop in round_.outgoing.spans:
            if peer in near:
                mine.places[peer].append(_Place(number % len(buffers), start, stop))
    told = [mine] * group.size()
    dist.all_gather_object(told, mine, group=group)
    arriving = {peer: iter(_mapped(told[peer], rank)) for peer in near}
    dist.barrier(group)  # A buffer can be mapped only while its owner lives.
    return [{i: next(arriving[round_.incoming.spans[i].peer]) for i in round_.near} for round_ in rounds]


def _mapped(told: _Told, receiver: int) -> list[torch.Tensor]:
    buffers = [shm.attach(shared) for shared in told.buffers]
    return [buffers[buffer][start:stop] for buffer, start, stop in told.places[receiver]]


def _reaches(shared: SharedTensor) -> bool:
    try:
        shm.attach(shared)
    except ResourceError:
        return False
    return True
