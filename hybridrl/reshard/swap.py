"""Writes a trainer rank's weights straight into the parameters of live engines.

The engines take no part: their parameters were exported once, and this rank attached to those it writes.
Trainer ranks write at the same time, each its own boxes, and none waits for another. The caller quiesces the
engines first, adds the checksum parts over the ranks, and compares them with the engines' own to commit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hybridrl.errors import SwapError
from hybridrl.layout.base import Layout
from hybridrl.reshard.execute import Target, copy_and_sum, tabulate
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.transports.base import SharedTensor, attach

Engine = tuple[Layout, Sequence[Mapping[str, SharedTensor]]]
"""An engine's layout, and what each of its ranks exported."""


@dataclass(frozen=True, slots=True)
class SwapWritten:
    """What one rank wrote."""

    num_tensors: int
    """Engine tensors, or parts of them."""

    bytes: int
    staging_bytes: int
    checksums: dict[Target, int]
    """(engine, its rank, tensor) -> this rank's part of the tensor's checksum."""


class SwapWriter:
    """One trainer rank's part of every swap: planned and attached once, then written as often as needed."""

    def __init__(
        self,
        source: Layout,
        rank: int,
        engines: Sequence[Engine],
        *,
        near: Mapping[tuple[int, int], frozenset[int]] | None = None,
    ) -> None:
        """
        Args:
            rank: of this process in `source`.
            engines: all of them, in the same order on every rank.
            near: (engine, its rank) -> trainer ranks on the same device, preferred among replicas.

        Raises:
            SwapError: an engine's tensors are not those of its layout.
            ResourceError: an engine's memory cannot be reached.
        """
        job = Job(source, tuple(layout for layout, _ in engines), near or {})
        self.plan_hash = job.digest
        """Equal on all trainer ranks; compare before the first swap."""
        for index, (layout, exported) in enumerate(engines):
            _refuse_other_layout(index, layout, exported)
        shards = source.shards(rank)
        self._table = tabulate(plan(job, source_rank=rank))
        self._shapes = {name: shards[name].shape for name in self._table.sources}
        self._empty = _empty(engines) if rank == 0 else {}
        self._targets = [
            attach(engines[engine][1][place][name]) for engine, place, name in self._table.targets
        ]

    def write(self, tensors: Mapping[str, torch.Tensor]) -> SwapWritten:
        """Write this rank's part of the new weights into every engine.

        Args:
            tensors: this rank's shards, by the names of the source layout; cast to the engine's dtype.

        Returns:
            What was sent; it is in the engines when this returns.

        Raises:
            SwapError: a tensor is missing or has another shape than the layout says; nothing was written.
        """
        for name, shape in self._shapes.items():
            if name not in tensors:
                raise SwapError(f"the trainer did not give {name}", where="weights of the swap")
            if tensors[name].shape != shape:
                raise SwapError(
                    f"the trainer's {name} is {tuple(tensors[name].shape)}, its layout says {shape}"
                )
        done = copy_and_sum(self._table, [tensors[name] for name in self._table.sources], self._targets)
        return SwapWritten(len(self._targets), done.bytes, done.staging_bytes, self._empty | done.checksums)


def _empty(engines: Sequence[Engine]) -> dict[Target, int]:
    """Engine tensors that are padding from end to end: nobody writes them, and their checksum is 0."""
    return {
        (engine, rank, name): 0
        for engine, (layout, exported) in enumerate(engines)
        for rank in range(len(exported))
        for name, shard in layout.shards(rank).items()
        if not (shard.rows and shard.cols)
    }


def _refuse_other_layout(engine: int, layout: Layout, exported: Sequence[Mapping[str, SharedTensor]]) -> None:
    """With another layout than the engine's, weights would silently land in the wrong place."""
    if len(exported) != layout.world_size:
        raise SwapError(f"engine {engine} exported {len(exported)} ranks, its layout has {layout.world_size}")
    for rank, tensors in enumerate(exported):
        shards = layout.shards(rank)
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
