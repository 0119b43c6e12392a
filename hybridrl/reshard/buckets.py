"""A checkpoint in buckets of bounded size, for engines that load weights with their own loader.

Every trainer rank writes its boxes of a bucket into one shared buffer, and the engine reads whole tensors
from it. Weights are copied twice, and no process holds more than its own shards and the buffer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from hybridrl.errors import SwapError
from hybridrl.layout.base import Layout, instance
from hybridrl.layout.hf import HFLayout
from hybridrl.reshard.execute import copy
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.table import Table, tabulate

LIMIT_BYTES = 512 << 20


@dataclass(frozen=True)
class Bucket:
    """Tensors that lie end to end in a buffer."""

    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    """Hugging Face tensor name -> shape."""

    @property
    def nbytes(self) -> int:
        return sum(map(prod, self.shapes.values())) * self.dtype.itemsize

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors as views of a uint8 buffer that is large enough."""
        values = buffer[: self.nbytes].view(self.dtype)
        parts = values.split([prod(shape) for shape in self.shapes.values()])
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def split(layout: HFLayout, dtype: torch.dtype, limit_bytes: int = LIMIT_BYTES) -> list[Bucket]:
    """Buckets of at most `limit_bytes`. A bucket is larger if the tensors of one parameter are.

    Tensors of one parameter stay in one bucket, because a loader may fuse them before it stores them.
    """
    buckets: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for shapes in _parameters(layout):
        nbytes = sum(map(prod, shapes.values())) * dtype.itemsize
        if not buckets or nbytes > room:
            buckets.append({})
            room = limit_bytes
        buckets[-1].update(shapes)
        room -= nbytes
    return [Bucket(dtype, shapes) for shapes in buckets]


class BucketWriter:
    """One trainer rank's part of every bucket, planned once and written any number of times."""

    def __init__(self, source: Layout, rank: int, buckets: Sequence[Bucket], buffer: torch.Tensor) -> None:
        """
        Args:
            rank: rank of this process in `source`.
            buffer: uint8, shared by all ranks and engines, as large as the largest bucket.
        """
        job = Job(source, (HFLayout(source.spec),))
        self.plan_hash = job.digest
        table = tabulate(plan(job, source_rank=rank))
        self._places = [(_part(table, bucket), bucket.views(buffer)) for bucket in buckets]

    def sources(self, index: int) -> Sequence[str]:
        """Names of this rank's tensors that a bucket reads."""
        return self._places[index][0].sources

    def write(self, index: int, tensors: Mapping[str, torch.Tensor]) -> int:
        """Write this rank's part of a bucket; returns its bytes.

        Args:
            tensors: name in the source layout -> this rank's shard in host memory, at least those of
                `sources`. They are cast to the dtype of the bucket.

        Raises:
            SwapError: a tensor is missing; nothing was written.
        """
        table, places = self._places[index]
        missing = [name for name in table.sources if name not in tensors]
        if missing:
            raise SwapError(f"the trainer did not give {missing[0]}", where=f"bucket {index}")
        targets = [places[name] for _, _, name in table.targets]
        with torch.no_grad():
            copy(table, [tensors[name] for name in table.sources], targets)
        return int(np.prod(table.boxes[:, 6:], axis=1).sum()) * next(iter(places.values())).element_size()


def _parameters(layout: HFLayout) -> Iterator[dict[str, tuple[int, ...]]]:
    """Name -> shape of the tensors that make up one parameter, for one layer and one expert."""
    found: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    for held in layout.holdings:
        for layer in held.layers:
            for expert, (name, shard) in enumerate(held.shards(layer)):
                found.setdefault((instance(held.param, layer), expert), {})[name] = shard.shape
    yield from found.values()


def _part(table: Table, bucket: Bucket) -> Table:
    """The rows of a table that write into a bucket, with sources and targets renumbered."""
    kept = [i for i, (_, _, name) in enumerate(table.targets) if name in bucket.shapes]
    boxes = table.boxes[np.isin(table.boxes[:, 1], kept)]
    sources, boxes[:, 0] = np.unique(boxes[:, 0], return_inverse=True)
    targets, boxes[:, 1] = np.unique(boxes[:, 1], return_inverse=True)
    return Table([table.sources[i] for i in sources], [table.targets[i] for i in targets], boxes)
