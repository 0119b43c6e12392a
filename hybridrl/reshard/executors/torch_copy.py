"""Copies box by box with torch. It runs on every device of torch and costs a few calls per box."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.reshard.block_fp8 import Area, BlockFP8, Scattered, divide_into_blocks
from hybridrl.reshard.checksum import MODULUS, as_matrix, box_checksum
from hybridrl.reshard.descriptors import describe
from hybridrl.reshard.executors.base import Signature, Written, refuse_other_sources, signature
from hybridrl.reshard.kernels.reference import BLOCK, quantise
from hybridrl.reshard.table import Table

_STAGING_BYTES = 1 << 22
"""Approximate size of the buffers in which rows are cast or quantised, and summed."""


class Sent(NamedTuple):
    """A rectangle on its way to a target."""

    place: int
    """Index of a target. The scales of target i have index ~i."""

    start: tuple[int, int]
    values: torch.Tensor
    staging_bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    table: Table
    targets: tuple[torch.Tensor | BlockFP8, ...]
    signatures: tuple[Signature, ...]
    boxes: np.ndarray
    """int64 [n, 8]: boxes whose targets are plain tensors."""

    areas: list[Area]
    scattered: list[Scattered]

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write as base.Prepared.write does."""
        refuse_other_sources(self.table, self.signatures, sources)
        places = self._places()
        totals = dict.fromkeys(places, 0)
        num_bytes = staging_bytes = 0
        for place, (row, col), values, staged in self._sent([as_matrix(source) for source in sources]):
            rows, cols = values.shape
            places[place][row : row + rows, col : col + cols].copy_(values)
            num_bytes += values.nbytes
            staging_bytes = max(staging_bytes, staged)
            if sums:
                totals[place] = (totals[place] + box_checksum(values, (row, col))) % MODULUS
        names = self.table.targets
        checksums = {names[i]: total for i, total in totals.items() if i >= 0 and sums}
        of_scales = {names[~i]: total for i, total in totals.items() if i < 0 and sums}
        return Written(num_bytes, staging_bytes, checksums, of_scales)

    def _places(self) -> dict[int, torch.Tensor]:
        places = {}
        for i, target in enumerate(self.targets):
            if isinstance(target, BlockFP8):
                places[i], places[~i] = as_matrix(target.values), as_matrix(target.scales)
            else:
                places[i] = as_matrix(target)
        return places

    def _sent(self, matrices: list[torch.Tensor]) -> Iterator[Sent]:
        for source, place, row, col, to_row, to_col, rows, cols in self.boxes.tolist():
            values = matrices[source][row : row + rows, col : col + cols]
            target = self.targets[place]
            assert isinstance(target, torch.Tensor)
            for first, part in _in_dtype(values, target.dtype):
                staged = 0 if part.dtype == values.dtype else part.nbytes
                yield Sent(place, (to_row + first, to_col), part, staged)
        for area in self.areas:
            yield from self._area(area, matrices[area.source])
        for block in self.scattered:
            yield from self._quantised(block, _gathered(block, matrices), 4 * BLOCK * BLOCK)

    def _area(self, area: Area, matrix: torch.Tensor) -> Iterator[Sent]:
        """Quantise an area, a few rows of blocks at a time."""
        step = BLOCK * max(1, _STAGING_BYTES // (4 * BLOCK * area.cols))
        for first in range(0, area.rows, step):
            rows = min(step, area.rows - first)
            weight = matrix[area.row + first : area.row + first + rows, area.col : area.col + area.cols]
            yield from self._quantised(area.down(first), weight, 4 * rows * area.cols)

    def _quantised(self, place: Area | Scattered, weight: torch.Tensor, staged: int) -> Iterator[Sent]:
        target = self.targets[place.target]
        assert isinstance(target, BlockFP8)
        values, scales = quantise(weight, power_of_two=target.power_of_two)
        yield Sent(place.target, (place.to_row, place.to_col), values, staged)
        stored = scales.T.contiguous() if target.transposed else scales
        yield Sent(~place.target, (place.scale_row, place.scale_col), stored, 0)


def prepare(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Prepared:
    """Prepare as base.Executor.prepare does."""
    describe(table, sources, targets)
    boxes = table.boxes[(table.boxes[:, 6:] > 0).all(axis=1)]
    scaled = np.isin(boxes[:, 1], [i for i, t in enumerate(targets) if isinstance(t, BlockFP8)])
    areas, scattered = divide_into_blocks(boxes[scaled], targets)
    signatures = tuple(map(signature, sources))
    return Prepared(table, tuple(targets), signatures, boxes[~scaled], areas, scattered)


def _gathered(block: Scattered, matrices: list[torch.Tensor]) -> torch.Tensor:
    weight = torch.empty(block.rows, block.cols, device=matrices[0].device)
    for chunk in block.chunks:
        values = matrices[chunk.source][
            chunk.row : chunk.row + chunk.rows, chunk.col : chunk.col + chunk.cols
        ]
        to_rows = slice(chunk.at_row, chunk.at_row + chunk.rows)
        weight[to_rows, chunk.at_col : chunk.at_col + chunk.cols] = values
    return weight


def _in_dtype(values: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows in `dtype`), in steps that bound the staging; all rows at once if nothing is cast."""
    if values.dtype == dtype:
        yield 0, values
        return
    num_rows, num_cols = values.shape
    step = min(num_rows, max(1, _STAGING_BYTES // (num_cols * dtype.itemsize)))
    staging = torch.empty(step, num_cols, dtype=dtype, device=values.device)
    for first in range(0, num_rows, step):
        rows = values[first : first + step]
        yield first, staging[: len(rows)].copy_(rows)
