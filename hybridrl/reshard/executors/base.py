"""What an executor is: a module that carries out a table of strided block copies on given tensors.

A file in this folder is an executor, and its name is the name in a config. All write the same bits and return
the same checksums; they differ in where they run and how fast.
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
    """What one write did. Checksums are of what was sent, not of what arrived, so that damage shows."""

    bytes: int
    """Of the targets, scales included."""

    staging_bytes: int
    """The largest buffer that was used on the way."""

    checksums: dict[Target, int]
    """The part of each target tensor's checksum that comes from what was written here."""

    scale_checksums: dict[Target, int]
    """The same of the scales of targets that are BlockFP8, under the target's name."""


class Prepared(Protocol):
    """A table with its targets, resolved once and written as often as needed."""

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write every box; it is in the targets when this returns.

        Args:
            sources: like those that were prepared for, but they may lie elsewhere now.
            sums: False: the checksums are left empty, and cost nothing.

        Raises:
            ValueError: a source has another shape, stride, dtype or device; nothing was written.
        """
        ...


class Executor(Protocol):
    """What an executor module offers."""

    def prepare(
        self, table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
    ) -> Prepared:
        """Resolve a table once.

        Args:
            sources: in the order of the table, of any dimensions; all but the last count as rows. Only their
                shapes, strides and dtypes are read.
            targets: in the order of the table; they stay where they are. No two boxes overlap in a target.

        Raises:
            ValueError: a box leaves its tensor, the rows of a tensor are not regular, a cast is not offered,
                or part of an FP8 block is missing.
            ResourceError: this machine cannot run the executor.
        """
        ...


_FOLDER = "hybridrl.reshard.executors"


def find(name: str) -> Executor:
    """
    Raises:
        ResourceError: this version has no such executor.
    """
    return cast(Executor, registry.module(_FOLDER, name, what="executor"))


Signature = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]


def signature(tensor: torch.Tensor) -> Signature:
    """What must not change between writes."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def refuse_other_sources(
    table: Table, expected: Sequence[Signature], sources: Sequence[torch.Tensor]
) -> None:
    """
    Raises:
        ValueError: the sources of a write are not like those that the table was prepared for.
    """
    if len(sources) != len(expected):
        raise ValueError(f"prepared for {len(expected)} sources, given are {len(sources)}")
    for name, like, tensor in zip(table.sources, expected, sources, strict=True):
        if signature(tensor)[:3] != like[:3] or (like[3].type != "meta" and tensor.device != like[3]):
            raise ValueError(f"source {name} was prepared as {like}, now it is {signature(tensor)}")


def written(table: Table, descriptors: Descriptors, totals: list[int] | None) -> Written:
    """
    Args:
        totals: checksums in the order of the targets' bases; None where none were taken.
    """
    if totals is None:
        return Written(descriptors.num_bytes, descriptors.staging_bytes, {}, {})
    names = table.targets
    of_scales = {names[i]: totals[len(names) + at] for at, i in enumerate(descriptors.scaled)}
    return Written(descriptors.num_bytes, descriptors.staging_bytes, dict(zip(names, totals)), of_scales)
