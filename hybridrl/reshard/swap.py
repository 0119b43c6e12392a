"""Writes a trainer rank's weights straight into the parameters of live engines.

The engines' processes do nothing: they exported their parameters once, and this rank attached to those that
it writes. Trainer ranks write at the same time, each its own boxes, and none waits for another. The caller
quiesces the engines first, sums the checksum parts over the ranks, and compares them with the engines' own
checksums before the commit.

Boxes whose target a rank cannot map are sent to the rank on the engine's device, which writes them
(exchange.py). That rank is a trainer rank, or an agent: a process without weights of the trainer. With
once_per_node, bytes that several engine ranks of a node need from other nodes reach the node once; each of
these ranks' writers gets an equal part, and passes it on to the others: by copies where it maps their memory,
otherwise in a second exchange, which begins on each rank when its first one is over.

A failed write is repeated, by new writers if ranks died. A delta writes only some parameters; the other
tensors must still hold what the swap to its base version wrote.

Fixed parameters, which no optimizer step changes, are written once by each writer. Later writes leave them
out, and name the checksums of the first one again: an engine that lost or damaged them does not commit.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist

from hybridrl.errors import SwapError
from hybridrl.layout.base import Layout, instance
from hybridrl.layout.blocks import num_blocks
from hybridrl.reshard.agreement import Checksums, expected, plan_fields
from hybridrl.reshard.copies import (
    Copies,
    Engine,
    attached,
    checksums,
    forwarding,
    passed_on,
    side,
    weights,
    with_scales,
)
from hybridrl.reshard.exchange import Exchange
from hybridrl.reshard.executors.base import Written
from hybridrl.reshard.plan import Job, Transfer, plan
from hybridrl.reshard.routes import Reach, Routes, routes
from hybridrl.reshard.topology import Topology
from hybridrl.reshard.transports.base import SharedTensor

__all__ = ["STAGING_BYTES", "Engine", "SwapWriter", "SwapWritten"]

STAGING_BYTES = 512 << 20
"""Most bytes of the buffers through which a rank sends to others."""


@dataclass(frozen=True, slots=True)
class SwapWritten:
    """What one rank wrote."""

    num_tensors: int
    """Number of engine tensors that this rank wrote, wholly or partly."""

    bytes: int
    sent_bytes: int
    """Bytes of its own weights sent to other ranks because this rank cannot map the engine's memory."""

    staging_bytes: int
    checksums: Checksums
    """This rank's part of the checksums of all tensors, those that were left out included."""

    forwarded_bytes: int = 0
    """Bytes of engines on its device sent to other ranks of the node, which need them too."""


class SwapWriter:
    """One trainer rank's part of every swap: planned and attached once, then written for every version."""

    def __init__(
        self,
        source: Layout,
        rank: int,
        engines: Sequence[Engine],
        *,
        topology: Topology | None = None,
        lost: frozenset[int] = frozenset(),
        only: Sequence[str] | None = None,
        fixed: Set[str] = frozenset(),
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        reach: Reach = "node",
        once_per_node: bool = False,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        """*Collective* over `group`, if there is one.

        Args:
            rank: rank of this process in `source`, or of an agent; agents follow the source ranks.
            engines: all engines, in the same order on every rank.
            topology: the device of every rank; None: this rank can map all engines, and all replicas are
                equally near.
            lost: trainer ranks that have died; replicas write in their place.
            only: for a delta, fnmatch patterns of the canonical parameters that it writes, such as
                "layers.3.qkv"; None: all parameters.
            fixed: canonical parameters that never change, such as "layers.3.qkv"; the same on all ranks.
            group: trainer ranks and agents, to send to engines whose memory this rank cannot map.
            device: device of this rank's tensors; None: the CPU.
            reach: which engine ranks' memory a rank can map.
            once_per_node: as in Job.
            staging_bytes: most bytes of the buffers through which this rank sends to others.

        Raises:
            SwapError: an engine's tensors are not those of its layout, `only` matches no parameter, or no
                rank can write to an engine.
            LayoutError: lost ranks were the only holders of a weight.
            ResourceError: an engine's memory cannot be mapped.
        """
        job = Job(source, tuple(layout for layout, _ in engines), topology, lost, once_per_node)
        told = f"{job.digest} {only} {reach} {sorted(fixed)}"
        self.plan_hash = hashlib.sha256(told.encode()).hexdigest()
        """A digest that must be equal on all trainer ranks; compare it before the first swap."""
        self.plan_fields = plan_fields(job) | {"only": str(only), "reach": reach, "fixed": str(sorted(fixed))}
        """The inputs of the plan by name."""
        for index, (layout, exported) in enumerate(engines):
            _refuse_other_layout(index, layout, exported)
        ways = routes(job, rank, reach) if topology else Routes(direct=plan(job, source_rank=rank))
        if only is not None:
            _refuse_unknown(job, only)
            ways = ways.map(lambda transfers: list(_chosen(transfers, lambda name: _matches(name, only))))
        is_source = rank < source.world_size
        self._shapes = {name: shard.shape for name, shard in source.shards(rank).items()} if is_source else {}
        first, later = _at_first(ways, fixed)
        forwards = once_per_node and reach == "device" and group is not None
        staging_bytes //= (1 + bool(fixed)) * (1 + forwards)
        given = engines, group, device, staging_bytes
        self._later = _Ways(later, *given, forwards=forwards)
        self._first = _Ways(first, *given, forwards=forwards) if fixed else None
        self._fixed: Checksums | None = None
        """This rank's part of the checksums of fixed parameters; None: they were not written yet."""

        is_first = rank == min(set(range(source.world_size)) - lost)
        self._empty = _empty(engines) if is_first and only is None else {}

    def write(self, tensors: Mapping[str, torch.Tensor], *, whole: bool = False) -> SwapWritten:
        """Write this rank's part of the new weights into every engine. *Collective* over the group.

        Args:
            tensors: name in the source layout -> this rank's shard; cast to the engine's dtype.
            whole: fixed parameters are written again, because engines may not have them; the same on all
                ranks.

        Returns:
            What was written. It is in the engines once this call has returned on all ranks.

        Raises:
            SwapError: a tensor is missing or has another shape than in the layout, and nothing was written;
                or a rank that sends or receives bytes is lost.
        """
        self._refuse_other_tensors(tensors)
        parts = [self._later.write(tensors)]
        if self._first and (whole or self._fixed is None):
            parts.append(self._first.write(tensors))
            self._fixed = parts[-1].checksums
            kept: Checksums = {}
        else:
            kept = self._fixed or {}
        return SwapWritten(
            sum(part.num_tensors for part in parts),
            sum(part.bytes for part in parts),
            sum(part.sent_bytes for part in parts),
            max(part.staging_bytes for part in parts),
            expected((self._empty, kept, *(part.checksums for part in parts))),
            sum(part.forwarded_bytes for part in parts),
        )

    def _refuse_other_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, shape in self._shapes.items():
            if name not in tensors:
                raise SwapError(f"the trainer did not give {name}", where="weights of the swap")
            if tensors[name].shape != shape:
                raise SwapError(
                    f"the trainer's {name} is {tuple(tensors[name].shape)}, its layout says {shape}"
                )


class _Ways:
    """Transfers of one rank that are written together: its own, those through others, those it passes on."""

    def __init__(
        self,
        ways: Routes,
        engines: Sequence[Engine],
        group: dist.ProcessGroup | None,
        device: torch.device | None,
        staging_bytes: int,
        *,
        forwards: bool,
    ) -> None:
        """*Collective* over `group`, if there is one.

        Args:
            forwards: ranks pass on by messages what engines on their device got.
        """
        self._direct, self._passed_on = Copies(ways.direct, engines), passed_on(ways.passed_on, engines)
        self._remote = _exchange(ways.sends, ways.receives, engines, group, device, staging_bytes)
        self._forward, self._held = None, dict[str, torch.Tensor]()
        if forwards:
            outgoing, self._held = forwarding(ways.forwards, engines)
            incoming = {
                peer: list(with_scales(transfers, engines)) for peer, transfers in ways.forwarded.items()
            }
            given = outgoing, incoming, engines, group, device, staging_bytes
            self._forward = _exchange(*given, quantises=False)
        self._layouts = [layout for layout, _ in engines]

    def write(self, tensors: Mapping[str, torch.Tensor]) -> SwapWritten:
        parts = [self._direct.write(tensors)]
        moved = self._remote.run(tensors) if self._remote else None
        forwarded = self._forward.run(self._held) if self._forward else None
        for stage in filter(None, (moved, forwarded)):
            parts.append(Written(stage.sent_bytes, stage.staging_bytes, stage.checksums, {}))
        parts += [copies.write({}) for copies in self._passed_on]
        return SwapWritten(
            sum(len(part.checksums) for part in parts),
            sum(part.bytes for part in parts),
            moved.sent_bytes if moved else 0,
            max(part.staging_bytes for part in parts),
            expected(checksums(part, self._layouts) for part in parts),
            forwarded.sent_bytes if forwarded else 0,
        )


def _exchange(
    outgoing: Mapping[int, Sequence[Transfer]],
    incoming: Mapping[int, Sequence[Transfer]],
    engines: Sequence[Engine],
    group: dist.ProcessGroup | None,
    device: torch.device | None,
    staging_bytes: int,
    *,
    quantises: bool = True,
) -> Exchange | None:
    """The exchange of what a rank sends to others and writes for them."""
    if group is None:
        for transfer in (t for transfers in outgoing.values() for t in transfers):
            raise SwapError(
                f"engine {transfer.target}, rank {transfer.target_rank} is out of reach, and there is no "
                "process group to send weights through",
                fix="give the process group of the trainer ranks",
            )
        return None
    sends, receives = (
        {peer: side(transfers, engines, quantises=quantises) for peer, transfers in way.items()}
        for way in (outgoing, incoming)
    )
    names = {name for one in receives.values() for name, _ in one.places()}
    targets = {name: attached(engines, name) for name in names}
    return Exchange(group, sends, receives, targets, device=device, staging_bytes=staging_bytes)


def _at_first(ways: Routes, fixed: Set[str]) -> tuple[Routes, Routes]:
    """The transfers of fixed parameters, and all others."""
    if not fixed:
        return Routes(), ways
    return (
        ways.map(lambda transfers: list(_chosen(transfers, lambda name: name in fixed))),
        ways.map(lambda transfers: list(_chosen(transfers, lambda name: name not in fixed))),
    )


def _refuse_unknown(job: Job, only: Sequence[str]) -> None:
    held = {(held.param, held.layers) for layout in job.targets for held in layout.holdings}
    names = {instance(param, layer) for param, layers in held for layer in layers}
    for pattern in only:
        if not matching(names, pattern):
            raise SwapError(f"the engines have no parameter {pattern!r}", where="names of a delta")


def _matches(name: str, only: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in only)


def _chosen(transfers: Iterable[Transfer], is_chosen: Callable[[str], bool]) -> Iterator[Transfer]:
    """The transfers of some parameters, by their canonical names. An engine tensor gets its bytes from one
    parameter, so it is written completely or not at all."""
    for transfer in transfers:
        for layers in _runs(layer for layer in transfer.layers if is_chosen(instance(transfer.param, layer))):
            yield replace(transfer, layers=layers)


def _runs(numbers: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges without gaps."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def _empty(engines: Sequence[Engine]) -> Checksums:
    """Engine tensors that are all padding: no rank writes them, and their checksum is 0."""
    return {
        (engine, rank, name): 0
        for engine, (layout, exported) in enumerate(engines)
        for rank in range(len(exported))
        for name, shard in layout.shards(rank).items()
        if not (shard.rows and shard.cols)
    }


def _refuse_other_layout(engine: int, layout: Layout, exported: Sequence[Mapping[str, SharedTensor]]) -> None:
    # With a layout that is not the engine's, weights would silently be written to wrong places.
    if len(exported) != layout.world_size:
        raise SwapError(f"engine {engine} exported {len(exported)} ranks, its layout has {layout.world_size}")
    for rank, every in enumerate(exported):
        shards, tensors = layout.shards(rank), weights(every, layout)
        blocks = _blocks_of(layout, rank)
        where = f"engine {engine}, rank {rank}"
        other = sorted(tensors.keys() ^ shards.keys())
        if other:
            raise SwapError(f"only one of the engine and its layout has {', '.join(other[:4])}", where=where)
        for name, shard in shards.items():
            shape, stride = tensors[name].shape, tensors[name].stride
            if shape != shard.shape:
                raise SwapError(f"the engine's {name} is {shape}, its layout says {shard.shape}", where=where)
            if not tensors[name].is_dense:
                raise SwapError(f"the engine's {name} {shape} has gaps: strides {stride}", where=where)
            _refuse_other_precision(name, every, layout.scales, blocks.get(name), where)


def _blocks_of(layout: Layout, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the scales of an engine rank's block-FP8 tensors, by the names of these."""
    return {
        name: (*held.shape[:-2], *map(num_blocks, held.shape[-2:]))
        for held in layout.holdings
        if held.fp8 and rank in held.ranks
        for layer in held.layers
        for name, _ in held.shards(layer)
    }


def _refuse_other_precision(
    name: str, every: Mapping[str, SharedTensor], suffix: str, blocks: tuple[int, ...] | None, where: str
) -> None:
    dtype, scales = every[name].dtype, every.get(name + suffix)
    if (dtype == torch.float8_e4m3fn) != (blocks is not None):
        raise SwapError(
            f"the engine's {name} is {dtype}, in its layout it is {'block FP8' if blocks else 'not in FP8'}",
            where=where,
            fix="start the engine with the rollout.precision of the layout",
        )
    if blocks is None:
        return
    if scales is None or (scales.shape, scales.dtype) != (blocks, torch.float32) or not scales.is_dense:
        found = "none" if scales is None else f"{scales.dtype} {scales.shape}"
        raise SwapError(
            f"the scales of {name} should be float32 {blocks}, one for each 128 x 128 of it; the engine has "
            f"{found}",
            where=where,
            fix="rollout.precision: bf16, or a GPU on which SGLang keeps such scales",
        )
