"""Targets in block-FP8, and how the boxes that go to them fall into blocks of 128 x 128.

A block needs all of its values for its scale. Blocks that one box covers are quantised straight from the
source; the others, where shards are cut inside a block, are listed with the pieces they are made of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.reshard.kernels.reference import BLOCK


@dataclass(frozen=True, slots=True)
class BlockFP8:
    """An engine's quantised weight: a target that stands for two tensors."""

    values: torch.Tensor
    """float8_e4m3fn [..., R, C]; leading dimensions are experts, each with blocks of its own."""

    scales: torch.Tensor
    """float32 [..., ceil(R/128), ceil(C/128)]: value * scale = weight, SGLang's weight_scale_inv."""

    transposed: bool = False
    """Scales are [..., ceil(C/128), ceil(R/128)]."""

    power_of_two: bool = False
    """Scales are rounded up to a power of two (ue8m0, kept in float32)."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: values and scales do not fit each other.
        """
        if self.values.dtype != torch.float8_e4m3fn or self.scales.dtype != torch.float32:
            raise ValueError(
                f"block-FP8 values are float8_e4m3fn and scales float32, "
                f"not {self.values.dtype} and {self.scales.dtype}"
            )
        if self.values.dim() < 2:
            raise ValueError(f"block-FP8 values are matrices, not {tuple(self.values.shape)}")
        blocks = self.num_blocks[::-1] if self.transposed else self.num_blocks
        expected = (*self.values.shape[:-2], *blocks)
        if self.scales.shape != expected:
            raise ValueError(
                f"scales of values {tuple(self.values.shape)} are {expected}, not {tuple(self.scales.shape)}"
            )

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks, of one expert."""
        rows, cols = self.values.shape[-2:]
        return -(-rows // BLOCK), -(-cols // BLOCK)

    def scale_place(self, expert: int, block_row: int, block_col: int) -> tuple[int, int]:
        """Row and column of a block's scale; leading dimensions of the scales count as rows."""
        if self.transposed:
            return expert * self.num_blocks[1] + block_col, block_row
        return expert * self.num_blocks[0] + block_row, block_col


class Area(NamedTuple):
    """Whole blocks that one box covers."""

    source: int
    target: int
    row: int
    col: int
    to_row: int
    to_col: int
    rows: int
    cols: int
    scale_row: int
    scale_col: int
    """Of the first block."""

    transposed: bool
    """Of the scales."""

    def down(self, rows: int) -> "Area":
        """The area without its first `rows` rows, a multiple of 128."""
        step = rows // BLOCK
        place = (
            (self.scale_row, self.scale_col + step)
            if self.transposed
            else (self.scale_row + step, self.scale_col)
        )
        moved = self._replace(row=self.row + rows, to_row=self.to_row + rows, rows=self.rows - rows)
        return moved._replace(scale_row=place[0], scale_col=place[1])


class Chunk(NamedTuple):
    """Part of a block, from a source's (row, col) to (at_row, at_col) in the block."""

    source: int
    row: int
    col: int
    at_row: int
    at_col: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Scattered:
    """A block that several boxes make up."""

    target: int
    to_row: int
    to_col: int
    rows: int
    cols: int
    scale_row: int
    scale_col: int
    pieces: list[Chunk] = field(default_factory=list)


def fall_into_blocks(
    boxes: np.ndarray, targets: Sequence[torch.Tensor | BlockFP8]
) -> tuple[list[Area], list[Scattered]]:
    """Areas of whole blocks, and the blocks that several boxes make up.

    Args:
        boxes: int64 [n, 8] of a table, all to targets that are BlockFP8.

    Raises:
        ValueError: of some block these boxes hold a part only: its scale cannot be known here.
    """
    areas: list[Area] = []
    scattered: dict[tuple[int, int, int], Scattered] = {}
    for box in boxes.tolist():
        target = targets[box[1]]
        assert isinstance(target, BlockFP8)
        for found in _parts(box, target):
            if isinstance(found, Area):
                areas.append(found)
            else:
                block, chunk = found
                key = (block.target, block.to_row, block.to_col)
                scattered.setdefault(key, block).pieces.append(chunk)
    for block in scattered.values():
        _refuse_part_of_a_block(block)
    return areas, list(scattered.values())


def _refuse_part_of_a_block(block: Scattered) -> None:
    held, size = sum(chunk.rows * chunk.cols for chunk in block.pieces), block.rows * block.cols
    if held != size:
        raise ValueError(
            f"block-FP8 target {block.target}: of the {size} values of the block at row {block.to_row}, "
            f"column {block.to_col} only {held} are written here; gather the source before it is quantised"
        )


def _parts(box: list[int], target: BlockFP8) -> Iterator[Area | tuple[Scattered, Chunk]]:
    _, _, _, _, to_row, _, rows, _ = box
    height = target.values.shape[-2]
    for expert in range(to_row // height, -(-(to_row + rows) // height)):
        yield from _parts_of_expert(box, target, expert)


def _parts_of_expert(
    box: list[int], target: BlockFP8, expert: int
) -> Iterator[Area | tuple[Scattered, Chunk]]:
    source, index, row, col, to_row, to_col, rows, cols = box
    height, width = target.values.shape[-2:]
    start = expert * height
    # Rows and columns of the expert, [top, bottom) x [left, right), and how far the source's are from them
    top, bottom = max(0, to_row - start), min(height, to_row + rows - start)
    left, right = to_col, to_col + cols
    down, across = row - to_row + start, col - to_col
    whole_rows, whole_cols = _whole(top, bottom, height), _whole(left, right, width)
    if whole_rows and whole_cols:
        (y, y_end), (x, x_end) = _extent(whole_rows, height), _extent(whole_cols, width)
        place = target.scale_place(expert, whole_rows[0], whole_cols[0])
        yield Area(
            source, index, y + down, x + across, start + y, x, y_end - y, x_end - x, *place, target.transposed
        )
    for i in range(top // BLOCK, -(-bottom // BLOCK)):
        for j in range(left // BLOCK, -(-right // BLOCK)):
            if i in whole_rows and j in whole_cols:
                continue
            (y, y_end), (x, x_end) = _extent(range(i, i + 1), height), _extent(range(j, j + 1), width)
            block = Scattered(index, start + y, x, y_end - y, x_end - x, *target.scale_place(expert, i, j))
            first, last = max(y, top), min(y_end, bottom)
            begin, end = max(x, left), min(x_end, right)
            yield (
                block,
                Chunk(source, first + down, begin + across, first - y, begin - x, last - first, end - begin),
            )


def _whole(start: int, stop: int, length: int) -> range:
    """The blocks that lie in [start, stop) of a dimension; the last one may be ragged."""
    return range(-(-start // BLOCK), -(-length // BLOCK) if stop == length else stop // BLOCK)


def _extent(blocks: range, length: int) -> tuple[int, int]:
    return blocks.start * BLOCK, min(length, blocks.stop * BLOCK)
