"""Block-FP8 targets, and how the boxes that are written to them divide into blocks of 128 x 128.

The scale of a block depends on all of its values. A block that one box covers is quantised straight from the
source. If a shard boundary is inside a block, the block is listed with the chunks that make it up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.reshard.kernels.reference import BLOCK


@dataclass(frozen=True, slots=True)
class BlockFP8:
    """An engine's quantised weight: one target that consists of two tensors."""

    values: torch.Tensor
    """float8_e4m3fn [..., R, C]. Leading dimensions are experts; no block spans two experts."""

    scales: torch.Tensor
    """float32 [..., ceil(R/128), ceil(C/128)]: value * scale = weight, SGLang's weight_scale_inv."""

    transposed: bool = False
    """Whether scales are [..., ceil(C/128), ceil(R/128)]."""

    power_of_two: bool = False
    """Whether scales are rounded up to a power of two (ue8m0, stored as float32)."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: dtypes or shapes of values and scales do not match.
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
        """(rows, columns) of blocks of one expert."""
        rows, cols = self.values.shape[-2:]
        return -(-rows // BLOCK), -(-cols // BLOCK)

    def scale_place(self, expert: int, block_row: int, block_col: int) -> tuple[int, int]:
        """(row, column) of a block's scale; leading dimensions of the scales count as rows."""
        if self.transposed:
            return expert * self.num_blocks[1] + block_col, block_row
        return expert * self.num_blocks[0] + block_row, block_col


class Area(NamedTuple):
    """Complete blocks that one box covers."""

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
    """Column of the first block's scale."""

    transposed: bool
    """Whether the scales are transposed."""

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
    """Part of a block: it is copied from (row, col) of a source to (at_row, at_col) of the block."""

    source: int
    row: int
    col: int
    at_row: int
    at_col: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Scattered:
    """A block that several boxes make up together."""

    target: int
    to_row: int
    to_col: int
    rows: int
    cols: int
    scale_row: int
    scale_col: int
    chunks: list[Chunk] = field(default_factory=list)


def divide_into_blocks(
    boxes: np.ndarray, targets: Sequence[torch.Tensor | BlockFP8]
) -> tuple[list[Area], list[Scattered]]:
    """(areas of complete blocks, blocks that several boxes make up).

    Args:
        boxes: int64 [n, 8], rows of a table whose targets are all BlockFP8.

    Raises:
        ValueError: these boxes hold only part of a block, so its scale cannot be computed.
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
                scattered.setdefault(key, block).chunks.append(chunk)
    for block in scattered.values():
        _refuse_part_of_a_block(block)
    return areas, list(scattered.values())


def _refuse_part_of_a_block(block: Scattered) -> None:
    held, size = sum(chunk.rows * chunk.cols for chunk in block.chunks), block.rows * block.cols
    if held != size:
        raise ValueError(
            f"block-FP8 target {block.target}: only {held} of the {size} values of the block at row "
            f"{block.to_row}, column {block.to_col} are written here; gather the source before quantising it"
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
    # [top, bottom) x [left, right) are rows and columns of the expert; (down, across) leads to the source's.
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
    """The blocks that lie completely in [start, stop) of a dimension; its last block may be ragged."""
    return range(-(-start // BLOCK), -(-length // BLOCK) if stop == length else stop // BLOCK)


def _extent(blocks: range, length: int) -> tuple[int, int]:
    return blocks.start * BLOCK, min(length, blocks.stop * BLOCK)
