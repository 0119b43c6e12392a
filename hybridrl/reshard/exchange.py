"""Sends weights between trainer ranks: the source packs, and the rank that maps the target unpacks.

Between hosts a message carries its bytes. On one host the bytes stay in shared memory (same_host.py): the
message only signals that they are ready, and an acknowledgement that they were read. That is half the copies,
and no bytes pass through a socket. On CPUs, large boxes that are contiguous in a source are sent from there,
and into a target where they are contiguous in it (direct.py): without a buffer, which saves two more copies.

Who waits for whom: a rank waits for its peers of one round while it packs the next round and unpacks the
previous one. It reuses a buffer after all readers have acknowledged, and it acknowledges messages in the
common order of all ranks, so these waits cannot deadlock either. The communicator holds trainer ranks and
agents only. Checksums are those of the packed values; the packer computes them, or the rank that reads the
packer's memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from hybridrl.errors import SwapError
from hybridrl.reshard import direct, same_host
from hybridrl.reshard.checksum import MODULUS, box_checksum
from hybridrl.reshard.execute import best
from hybridrl.reshard.executors.base import Prepared, Signature, signature
from hybridrl.reshard.rounds import BUFFERS, Bounds, BufferLayout, Round, Side, Span, rounds
from hybridrl.reshard.table import Target

__all__ = ["Exchange", "Exchanged", "Side"]

Carrier = Literal["memory", "messages"]
"""What carries bytes between ranks of one host."""

_GRACE = timedelta(milliseconds=1)
"""Time after a failure to collect what has arrived already."""

_ACK_TAG = 1
"""Tag of acknowledgements: the message was read."""


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What one rank moved."""

    sent_bytes: int
    """Bytes of the boxes, with their alignment padding."""

    received_bytes: int
    staging_bytes: int
    """Size of all buffers together."""

    checksums: dict[Target, int]
    """This rank's part of the checksums of the tensors that it sent to or read for. They are checksums of
    what was sent, not of what arrived; the parts of all ranks add up."""


class Exchange:
    """A rank's part of an exchange: agreed, scheduled and staged once, then run for every swap."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        sends: Mapping[int, Side],
        receives: Mapping[int, Side],
        targets: Mapping[Target, torch.Tensor],
        *,
        device: torch.device | None = None,
        staging_bytes: int = 512 << 20,
        on_host: Carrier = "memory",
    ) -> None:
        """*Collective* over the group.

        Args:
            group: the trainer ranks and agents. Its timeout bounds how long a rank waits for a lost one.
            sends, receives: rank in the group -> this rank's side.
            targets: tensors that the receiving sides name, in the dtypes of these sides.
            device: device of all tensors; None: the CPU.
            staging_bytes: most bytes of all buffers of a rank, which it keeps; equal on all ranks.
            on_host: what carries bytes on one host; "memory" applies to the CPU only; equal on all ranks.

        Raises:
            SwapError: two ranks disagree about what they exchange, or one is lost (on all ranks); or a
                target is missing or has another dtype (on this rank).
            ValueError: a peer is not in the group, staging is too small, or a box exceeds its target.
        """
        self._group, self._device = group, device or torch.device("cpu")
        rank, size = group.rank(), group.size()
        _refuse_other_peers({*sends, *receives}, rank, size)
        _refuse_other_targets(receives.values(), targets)
        bounds = Bounds.of(staging_bytes)
        _agree(
            group,
            self._device,
            {peer: side.digest(bounds.message_bytes) for peer, side in sends.items()},
            {peer: side.digest(bounds.message_bytes) for peer, side in receives.items()},
        )
        on_cpu = self._device.type == "cpu"
        shares = on_host == "memory" and on_cpu
        self._near = same_host.neighbours(group) if shares else frozenset()
        self._rounds = rounds(rank, size, sends, receives, bounds, self._near, alone=on_cpu)
        away = [side for peer, side in sends.items() if peer not in self._near]
        self._sent = {name for side in away for name, _ in side.places()}
        self._outgoing = self._buffers([round_.outgoing for round_ in self._rounds])
        self._incoming = self._buffers([round_.incoming for round_ in self._rounds])
        found = (
            same_host.messages(group, self._rounds, self._outgoing, self._near)
            if shares
            else [{}] * len(self._rounds)
        )
        self._reads = [
            self._readers(round_, there, targets) for round_, there in zip(self._rounds, found, strict=True)
        ]
        self._sources = {name for side in sends.values() for name in side.table.sources}
        self._signatures: dict[str, Signature] | None = None
        self._packs: list[Prepared] = []
        self._from: list[dict[int, direct.Place]] = []
        """Per round: index of an outgoing span that needs no buffer -> its place in a source."""

        self._into: list[dict[int, torch.Tensor]] = []
        """Per round: index of an incoming span that needs no buffer -> its bytes in a target."""

        self._unpacks: list[Prepared] = []
        for number, load in enumerate(round_.incoming for round_ in self._rounds):
            into = [targets[name] for name in load.table.targets]
            places = direct.places(load, into, of_targets=True)
            views = load.views(self._incoming[number % BUFFERS])
            self._unpacks.append(best(self._device).prepare(direct.staged(load, places), views, into))
            self._into.append({span: place.view(into[place.tensor]) for span, place in places.items()})

    def run(self, sources: Mapping[str, torch.Tensor]) -> Exchanged:
        """Send every box and write every box that arrives. *Collective* over the ranks that share boxes.

        Args:
            sources: tensors that the sending sides name; they are cast to the target's dtype, or quantised in
                blocks, before sending.

        Raises:
            SwapError: a source is missing, and nothing was written; or a peer is lost, targets are partly
                written, and the group cannot be used again.
            ValueError: a box exceeds its source or has no cast to the target's dtype; nothing was written.
        """
        self._prepare(sources)
        sums = dict.fromkeys(self._sent, 0)
        flights: list[_Flight] = []
        for number in range(len(self._rounds)):
            if number >= BUFFERS:
                flights[number - BUFFERS].wait_for_acks()
            self._pack(number, sources, sums)
            if number:
                flights[-1].wait(sums)
            flights.append(self._post(number, sources))
            if number:
                self._unpack(number - 1)
        if flights:
            flights[-1].wait(sums)
            self._unpack(len(flights) - 1)
        for flight in flights[-BUFFERS:]:
            flight.wait_for_acks()
        return Exchanged(
            sum(round_.outgoing.num_bytes for round_ in self._rounds),
            sum(round_.received_bytes for round_ in self._rounds),
            sum(buffer.nbytes for buffer in (*self._outgoing, *self._incoming)),
            {name: total % MODULUS for name, total in sums.items()},
        )

    def _post(self, number: int, sources: Mapping[str, torch.Tensor]) -> "_Flight":
        round_ = self._rounds[number]
        leave = [self._outgoing[number % BUFFERS][span.start : span.stop] for span in round_.outgoing.spans]
        arrive = [self._incoming[number % BUFFERS][span.start : span.stop] for span in round_.incoming.spans]
        for i, place in self._from[number].items():
            leave[i] = place.view(sources[round_.outgoing.table.sources[place.tensor]])
        for i, memory in self._into[number].items():
            arrive[i] = memory
        return _Flight(self._group, round_, leave, arrive, self._reads[number], self._near)

    def _buffers(self, loads: Sequence[BufferLayout]) -> list[torch.Tensor]:
        # Buffers stay between runs: on a CPU, touching new pages costs more than the copies.
        num_bytes = max((load.num_bytes for load in loads), default=0)
        count = min(BUFFERS, len(loads))
        return [torch.empty(num_bytes, dtype=torch.uint8, device=self._device) for _ in range(count)]

    def _readers(
        self, round_: Round, there: Mapping[int, torch.Tensor], targets: Mapping[Target, torch.Tensor]
    ) -> "dict[int, _Read]":
        executor, found = best(self._device), {}
        for place, load in round_.near.items():
            views = load.views(there[place])
            into = [targets[name] for name in load.table.targets]
            found[place] = _Read(executor.prepare(load.table, views, into), views)
        return found

    def _prepare(self, sources: Mapping[str, torch.Tensor]) -> None:
        """Prepare the packing, in the first run and whenever a source's shape, strides or dtype change."""
        missing = sorted(self._sources - sources.keys())
        if missing:
            raise SwapError(f"the exchange was not given {', '.join(missing[:4])}")
        found = {name: signature(sources[name]) for name in self._sources}
        if found != self._signatures:
            self._packs, self._from = [], []
            for number, load in enumerate(round_.outgoing for round_ in self._rounds):
                held = [sources[name] for name in load.table.sources]
                into = load.places(self._outgoing[number % BUFFERS])
                self._from.append(direct.places(load, held, of_targets=False))
                table = direct.staged(load, self._from[-1])
                self._packs.append(best(self._device).prepare(table, held, into))
            self._signatures = found

    def _pack(self, number: int, sources: Mapping[str, torch.Tensor], sums: dict[Target, int]) -> None:
        load, buffer = self._rounds[number].outgoing, self._outgoing[number % BUFFERS]
        held = [sources[name] for name in load.table.sources]
        self._packs[number].write(held, sums=False)
        there = {place.chunk.start: place.box(held[place.tensor]) for place in self._from[number].values()}
        for chunk in load.chunks if self._sent else ():
            if chunk.target in self._sent:
                values = there[chunk.start] if chunk.start in there else chunk.view(buffer)
                sums[chunk.target] += box_checksum(values, chunk.at)

    def _unpack(self, number: int) -> None:
        load = self._rounds[number].incoming
        self._unpacks[number].write(load.views(self._incoming[number % BUFFERS]), sums=False)


class _Read(NamedTuple):
    """A message in the sender's memory, and the prepared copies into its targets."""

    prepared: Prepared
    there: list[torch.Tensor]

    def write(self, sums: dict[Target, int]) -> None:
        for name, part in self.prepared.write(self.there).checksums.items():
            sums[name] = sums.get(name, 0) + part


class _Flight:
    """A round that was posted."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        round_: Round,
        leaving: Sequence[torch.Tensor],
        arriving: Sequence[torch.Tensor],
        reads: Mapping[int, _Read],
        near: frozenset[int],
    ) -> None:
        self._group, self._reads = group, reads
        arrive, leave = round_.incoming.spans, round_.outgoing.spans
        acknowledging = [span.peer for span in leave if span.peer in near]
        operations = [
            *(self._operation(dist.irecv, s, arriving[i], i in reads) for i, s in enumerate(arrive)),
            *(self._operation(dist.isend, s, leaving[i], s.peer in near) for i, s in enumerate(leave)),
            *(
                dist.P2POp(dist.irecv, _signal(), group=group, group_peer=p, tag=_ACK_TAG)
                for p in acknowledging
            ),
        ]
        peers = [span.peer for span in (*arrive, *leave)]
        try:
            works = dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            raise _lost(peers, error) from error
        self._moves = _Works(works[: len(peers)], peers)
        self._acks = _Works(works[len(peers) :], acknowledging)
        self._sent_acks = _Works([], [])

    def wait(self, sums: dict[Target, int]) -> None:
        """Wait until everything is sent and has arrived. Messages in peers' memory are read here."""
        for number in range(len(self._moves.works)):
            self._moves.wait(number)
            if number in self._reads:
                self._reads[number].write(sums)
                self._acknowledge(self._moves.peers[number])

    def wait_for_acks(self) -> None:
        """Wait until no rank reads this rank's outgoing buffer."""
        for works in (self._acks, self._sent_acks):
            for number in range(len(works.works)):
                works.wait(number)

    def _operation(
        self, call: Callable[..., object], span: Span, message: torch.Tensor, is_signal: bool
    ) -> dist.P2POp:
        tensor = _signal() if is_signal else message
        return dist.P2POp(call, tensor, group=self._group, group_peer=span.peer)

    def _acknowledge(self, peer: int) -> None:
        try:
            work = dist.isend(_signal(), group=self._group, group_dst=peer, tag=_ACK_TAG)
        except RuntimeError as error:
            raise _lost([peer], error) from error
        assert work is not None  # This rank is in the group.
        self._sent_acks.works.append(work)
        self._sent_acks.peers.append(peer)


def _signal() -> torch.Tensor:
    """One byte, sent when a message only has to signal that something happened."""
    return torch.zeros(1, dtype=torch.uint8)


class _Works(NamedTuple):
    """Operations that were posted together."""

    works: list[dist.Work]
    peers: list[int]

    def wait(self, number: int) -> None:
        try:
            self.works[number].wait()
        except RuntimeError as error:
            raise _lost(self._late(number), error) from error

    def _late(self, first: int) -> list[int]:
        """Peers whose operation had not ended when operation `first` failed."""
        if len(self.works) != len(self.peers):  # NCCL has one work for all operations, gloo has one each.
            return self.peers
        rest = zip(self.peers[first + 1 :], self.works[first + 1 :], strict=True)
        return [self.peers[first], *(peer for peer, work in rest if not _has_ended(work))]


def _has_ended(work: dist.Work) -> bool:
    try:
        return work.wait(_GRACE)
    except RuntimeError:
        return False


def _agree(
    group: dist.ProcessGroup, device: torch.device, sends: Mapping[int, int], receives: Mapping[int, int]
) -> None:
    """Compare digests with each peer. All ranks learn of a difference, so that none waits for another."""
    rank, size = group.rank(), group.size()
    told = torch.tensor([(sends.get(peer, 0), receives.get(peer, 0)) for peer in range(size)], device=device)
    heard = torch.empty_like(told)
    try:
        dist.all_to_all_single(heard, told, group=group)
        differ = (heard != told.flip(1)).any(1).nonzero().flatten().tolist()
        fault = torch.tensor([1 + rank * size + differ[0] if differ else 0], device=device)
        dist.all_reduce(fault, dist.ReduceOp.MAX, group=group)
    except RuntimeError as error:
        raise SwapError(f"the ranks cannot agree on an exchange: {error}") from error
    if int(fault):
        one, other = (rank, differ[0]) if differ else divmod(int(fault) - 1, size)
        raise SwapError(
            f"ranks {one} and {other} disagree about what they exchange",
            where="tensors, boxes, dtypes or staging",
            fix="plan on all ranks from the same layouts",
        )


def _lost(peers: Sequence[int], error: Exception) -> SwapError:
    names = ", ".join(str(peer) for peer in dict.fromkeys(peers))
    return SwapError(
        f"the exchange lost contact with rank {names}",
        where=str(error).splitlines()[0],
        fix="replan without it, and write again",
    )


def _refuse_other_peers(peers: set[int], rank: int, size: int) -> None:
    for peer in sorted(peers):
        if peer == rank or not 0 <= peer < size:
            raise ValueError(f"rank {rank} of {size} cannot exchange with rank {peer}")


def _refuse_other_targets(receives: Iterable[Side], targets: Mapping[Target, torch.Tensor]) -> None:
    for side in receives:
        for name, dtype in side.places():
            if name not in targets:
                raise SwapError(f"the exchange was not given {name}")
            if targets[name].dtype != dtype:
                raise SwapError(f"{name} is {targets[name].dtype}, and {dtype} arrives for it")
