"""The interface of an executor: a module that runs a table of strided block copies on given tensors.

Each file in this folder is an executor, and its file name is its name. All executors write the same bits and
return the same checksums; they differ in where they run and how fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from hybridrl import registry
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.descriptors import Descriptors
from hybridrl.reshard.table import Table, Target


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one write. Checksums are those of what was sent, so that damage on the way shows."""

    bytes: int
    """Bytes written to the targets, scales included."""

    staging_bytes: int
    """Size of the largest staging buffer."""

    checksums: dict[Target, int]
    """Target -> what this write adds to the tensor's checksum."""

    scale_checksums: dict[Target, int]
    """BlockFP8 target -> what this write adds to the checksum of its scales."""


class Prepared(Protocol):
    """A table with its targets, resolved once and written any number of times."""

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write every box. The values are in the targets when this returns.

        Args:
            sources: tensors like those given to `prepare`; their addresses may have changed.
            sums: whether to compute checksums. Without them the write is faster and they are empty.

        Raises:
            ValueError: a source has another shape, stride, dtype or device; nothing was written.
        """
        ...


class Executor(Protocol):
    """The function that an executor module must have."""

    def prepare(
        self, table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
    ) -> Prepared:
        """Resolve a table once.

        Args:
            sources: tensors in the order of the table. All dimensions but the last count as rows. Only
                shapes, strides and dtypes are read.
            targets: in the order of the table; their addresses must not change. Boxes must not overlap.

            Raises:
                ValueError: a box exceeds its tensor, a tensor has irregular strides, a cast is not supported,
                    or part of an FP8 block is missing.
                ResourceError: this machine cannot run the executor.
        """
        ...


_FOLDER = "hybridrl.reshard.executors"


def find(name: str) -> Executor:
    """
    Raises:
        ResourceError: there is no such executor.
    """
    return cast(Executor, registry.module(_FOLDER, name, what="executor"))


Signature = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


def signature(tensor: torch.Tensor) -> Signature:
    """The properties of a source that must not change between writes."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def refuse_other_sources(
    table: Table, expected: Sequence[Signature], sources: Sequence[torch.Tensor]
) -> None:
    """
    Raises:
        ValueError: the sources of a write differ from those that the table was prepared for.
    """
    if len(sources) != len(expected):
        raise ValueError(f"the table was prepared for {len(expected)} sources, not {len(sources)}")
    for name, like, tensor in zip(table.sources, expected, sources, strict=True):
        if signature(tensor)[:3] != like[:3] or (like[3].type != "meta" and tensor.device != like[3]):
            raise ValueError(f"source {name} was prepared as {like}, now it is {signature(tensor)}")


def written(table: Table, descriptors: Descriptors, totals: list[int] | None) -> Written:
    """The result of a write.

    Args:
        totals: checksums in the order of the target bases; None if none were computed.
    """
    if totals is None:
        return Written(descriptors.num_bytes, descriptors.staging_bytes, {}, {})
    names = table.targets
    of_scales = {names[i]: totals[len(names) + at] for at, i in enumerate(descriptors.scaled)}
    return Written(descriptors.num_bytes, descriptors.staging_bytes, dict(zip(names, totals)), of_scales)
