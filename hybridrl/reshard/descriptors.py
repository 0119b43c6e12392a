"""Resolves a table to byte offsets: the input of native.c and the Triton kernel, one row per strided block.

A phase is int64 [n, 15] with the columns below. An address is a base plus an offset; bases are looked up at
each write, because sources may have moved. Phases run one after another. The first one copies everything that
can go straight to its target. The others gather scattered FP8 blocks in a staging buffer and quantise them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.reshard.block_fp8 import Area, BlockFP8, Scattered, divide_into_blocks
from hybridrl.reshard.kernels.reference import BLOCK
from hybridrl.reshard.table import Table

SOURCE, TARGET, SOURCE_OFFSET, TARGET_OFFSET, SOURCE_PITCH, TARGET_PITCH, ROWS, COLS, OP, ROW, COL = range(11)
"""Base indices; bytes to the first element, and from row to row; numbers of rows and columns; operation;
row and column in the target."""

SCALES, SCALES_PITCH, SCALES_ROW, SCALES_COL = range(11, 15)
"""Columns for QUANTISE only: target base index of the scales, bytes from row to row, and row and column of
the first block's scale."""

NUM_COLUMNS = 15

COPY, CAST, QUANTISE = 0, 16, 32
"""Operations: COPY + log2(element size), CAST + 4 * source + target, QUANTISE + source + flags. Source and
target are indices into FLOATS."""

POWER_OF_TWO, TRANSPOSED = 4, 8
"""Flags of QUANTISE."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

STAGED_BLOCKS = 64
"""Number of scattered blocks that are quantised at a time: 4 MiB."""

_STAGED_BYTES = BLOCK * BLOCK * 4


class Matrix(NamedTuple):
    """A tensor as a table treats it: a vector is one row, and all dimensions but the last are rows."""

    rows: int
    cols: int
    pitch: int
    """Bytes from row to row."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Descriptors:
    """A resolved table.

    Source bases are those of the sources, then staging. Target bases are those of the targets (the values of
    a BlockFP8), then the scales, then staging.
    """

    phases: tuple[np.ndarray, ...]
    scaled: tuple[int, ...]
    """Indices of the BlockFP8 targets, in the order of their scales' bases."""

    staging_bytes: int
    num_bytes: int
    """Bytes that one write puts into the targets, scales included."""

    num_rows: int
    num_words: int
    """Most rows of a target, and most 64-bit words per row: so many checksum factors are needed."""


def describe(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Descriptors:
    """Resolve a table.

    Args:
        sources, targets: tensors in the order of the table; only their shapes, strides and dtypes are read.

    Raises:
        ValueError: a box exceeds its tensor, a tensor has irregular strides, a cast is not supported, or
            part of an FP8 block is missing. The error names the tensor.
    """
    _refuse_other_number(table, sources, targets)
    froms = [matrix(t, table.sources[i]) for i, t in enumerate(sources)]
    tos = [
        matrix(t.values if isinstance(t, BlockFP8) else t, table.targets[i][2]) for i, t in enumerate(targets)
    ]
    boxes = table.boxes[(table.boxes[:, 6:] > 0).all(axis=1)]
    _refuse_outside(table, boxes, froms, tos)
    scaled = {i: t for i, t in enumerate(targets) if isinstance(t, BlockFP8)}
    of_blocks = np.isin(boxes[:, 1], list(scaled))
    areas, scattered = divide_into_blocks(boxes[of_blocks], targets)
    quantised = _Quantised(scaled, froms, tos)
    first = np.concatenate([_strided(boxes[~of_blocks], froms, tos), quantised.straight(areas)])
    rounds = [scattered[i : i + STAGED_BLOCKS] for i in range(0, len(scattered), STAGED_BLOCKS)]
    staged = [
        phase for round_ in rounds for phase in (quantised.gather(round_), quantised.from_staging(round_))
    ]
    scales = [matrix(t.scales, f"scales of {table.targets[i][2]}") for i, t in scaled.items()]
    held = [*tos, *scales, Matrix(BLOCK, BLOCK, 4 * BLOCK, FLOATS[0])]
    num_blocks = sum(-(-a.rows // BLOCK) * -(-a.cols // BLOCK) for a in areas) + len(scattered)
    itemsize = np.array([to.dtype.itemsize for to in tos], np.int64)[boxes[:, 1]] if len(boxes) else 0
    return Descriptors(
        phases=tuple(phase for phase in (first, *staged) if len(phase)),
        scaled=tuple(scaled),
        staging_bytes=min(len(scattered), STAGED_BLOCKS) * _STAGED_BYTES,
        num_bytes=int((boxes[:, 6] * boxes[:, 7] * itemsize).sum()) + 4 * num_blocks,
        num_rows=max(m.rows for m in held),
        num_words=max(-(-m.cols * m.dtype.itemsize // 8) for m in held),
    )


def held_by(targets: Sequence[torch.Tensor | BlockFP8], descriptors: Descriptors) -> tuple[torch.Tensor, ...]:
    """Tensors in the order of the target bases. The last one, staging, is allocated here."""
    values = [t.values if isinstance(t, BlockFP8) else t for t in targets]
    scales = [t.scales for t in targets if isinstance(t, BlockFP8)]
    device = values[0].device if values else None
    staging = torch.empty(descriptors.staging_bytes, dtype=torch.uint8, device=device)
    return *(t.detach() for t in (*values, *scales)), staging


def matrix(tensor: torch.Tensor, name: str) -> Matrix:
    """
    Raises:
        ValueError: elements of a row are not contiguous, or rows are not at equal distances.
    """
    shape, stride = tuple(tensor.shape), tensor.stride()
    size = tensor.element_size()
    if size not in (1, 2, 4, 8):
        raise ValueError(f"{name}: elements of {size} bytes ({tensor.dtype}) cannot be moved")
    cols = shape[-1] if shape else 1
    lengths = [(length, step) for length, step in zip(shape[:-1], stride) if length != 1]
    regular = all(step == inner * length for (_, step), (length, inner) in zip(lengths, lengths[1:]))
    if (cols > 1 and stride[-1] != 1) or not regular:
        raise ValueError(
            f"{name} {shape} with strides {stride} is not rows of neighbouring elements at equal distances: "
            "make it contiguous"
        )
    rows = int(np.prod(shape[:-1])) if len(shape) > 1 else 1
    return Matrix(rows, cols, (lengths[-1][1] if lengths else cols) * size, tensor.dtype)


def operation(source: torch.dtype, target: torch.dtype) -> int:
    """The COPY or CAST code for a pair of dtypes.

    Raises:
        ValueError: there is no such cast.
    """
    if source == target:
        return COPY + source.itemsize.bit_length() - 1
    if source in FLOATS and target in FLOATS:
        return CAST + 4 * FLOATS.index(source) + FLOATS.index(target)
    raise ValueError(
        f"no cast from {source} to {target}; there are casts among {', '.join(map(str, FLOATS))}"
    )


def _refuse_other_number(table: Table, sources: Sequence[object], targets: Sequence[object]) -> None:
    if (len(sources), len(targets)) != (len(table.sources), len(table.targets)):
        raise ValueError(
            f"the table has {len(table.sources)} sources and {len(table.targets)} targets, "
            f"given are {len(sources)} and {len(targets)}"
        )


def _refuse_outside(table: Table, boxes: np.ndarray, froms: list[Matrix], tos: list[Matrix]) -> None:
    for side, held, names in ((0, froms, table.sources), (1, tos, [name for _, _, name in table.targets])):
        first = boxes[:, 2 + 2 * side : 4 + 2 * side]
        known = (boxes[:, side] >= 0) & (boxes[:, side] < len(held))
        sizes = np.array([m[:2] for m in held] or [(0, 0)], np.int64)[np.where(known, boxes[:, side], 0)]
        outside = ~known | (first < 0).any(axis=1) | (first + boxes[:, 6:] > sizes).any(axis=1)
        if outside.any():
            box = boxes[outside][0]
            name = names[box[side]] if 0 <= box[side] < len(held) else f"tensor {box[side]}"
            raise ValueError(
                f"a box of {box[6]} x {box[7]} at row {first[outside][0][0]}, column {first[outside][0][1]} "
                f"leaves {name}, which is {sizes[outside][0].tolist()}"
            )


def _strided(boxes: np.ndarray, froms: list[Matrix], tos: list[Matrix]) -> np.ndarray:
    """Rows for copies and casts."""
    rows = np.zeros((len(boxes), NUM_COLUMNS), np.int64)
    if not len(boxes):
        return rows
    rows[:, [SOURCE, TARGET, ROW, COL, ROWS, COLS]] = boxes[:, [0, 1, 4, 5, 6, 7]]
    for side, held in ((0, froms), (1, tos)):
        pitch = np.array([m.pitch for m in held], np.int64)[boxes[:, side]]
        size = np.array([m.dtype.itemsize for m in held], np.int64)[boxes[:, side]]
        rows[:, SOURCE_PITCH + side] = pitch
        rows[:, SOURCE_OFFSET + side] = boxes[:, 2 + 2 * side] * pitch + boxes[:, 3 + 2 * side] * size
    rows[:, OP] = _operations(boxes, froms, tos)
    return rows


def _operations(boxes: np.ndarray, froms: list[Matrix], tos: list[Matrix]) -> np.ndarray:
    """Operation of each box, looked up once per pair of dtypes."""
    dtypes = list({m.dtype for m in (*froms, *tos)})
    kinds = [
        np.array([dtypes.index(m.dtype) for m in held])[boxes[:, i]] for i, held in enumerate((froms, tos))
    ]
    pairs, which = np.unique(kinds[0] * len(dtypes) + kinds[1], return_inverse=True)
    ops = [operation(dtypes[pair // len(dtypes)], dtypes[pair % len(dtypes)]) for pair in pairs.tolist()]
    return np.array(ops, np.int64)[which]


@dataclass(frozen=True, slots=True)
class _Quantised:
    """Makes the rows for FP8 blocks."""

    scaled: dict[int, BlockFP8]
    """Target index -> target, in the order of the scales' bases."""

    froms: list[Matrix]
    tos: list[Matrix]

    def straight(self, areas: Sequence[Area]) -> np.ndarray:
        """Rows that quantise straight from the sources."""
        return _rows(
            self._row(
                (area.source, area.row * held.pitch + area.col * held.dtype.itemsize, held.pitch),
                area,
                held.dtype,
            )
            for area in areas
            for held in (self.froms[area.source],)
        )

    def gather(self, blocks: Sequence[Scattered]) -> np.ndarray:
        """Rows that copy into staging as float32. That is exact, so sources may have different dtypes."""
        found, staging = [], len(self.tos) + len(self.scaled)
        for slot, block in enumerate(blocks):
            for chunk in block.chunks:
                held = self.froms[chunk.source]
                offset = chunk.row * held.pitch + chunk.col * held.dtype.itemsize
                to = slot * _STAGED_BYTES + 4 * (chunk.at_row * BLOCK + chunk.at_col)
                op = operation(held.dtype, FLOATS[0])
                pitches = (held.pitch, 4 * BLOCK)
                sizes = (chunk.rows, chunk.cols)
                found.append((chunk.source, staging, offset, to, *pitches, *sizes, op, *[0] * 6))
        return _rows(found)

    def from_staging(self, blocks: Sequence[Scattered]) -> np.ndarray:
        staging = len(self.froms)
        return _rows(
            self._row((staging, slot * _STAGED_BYTES, 4 * BLOCK), block, FLOATS[0])
            for slot, block in enumerate(blocks)
        )

    def _row(
        self, source: tuple[int, int, int], block: Area | Scattered, dtype: torch.dtype
    ) -> tuple[int, ...]:
        """
        Args:
            source: (base index, offset, pitch).
        """
        target = self.scaled[block.target]
        if dtype not in FLOATS:
            raise ValueError(f"block-FP8 is quantised from {', '.join(map(str, FLOATS))}, not from {dtype}")
        flags = POWER_OF_TWO * target.power_of_two + TRANSPOSED * target.transposed
        index, offset, pitch = source
        to_pitch = self.tos[block.target].pitch
        to_offset = block.to_row * to_pitch + block.to_col
        scales = len(self.tos) + list(self.scaled).index(block.target)
        scales_pitch = matrix(target.scales, "scales").pitch
        move = (index, block.target, offset, to_offset, pitch, to_pitch, block.rows, block.cols)
        op = QUANTISE + FLOATS.index(dtype) + flags
        place = (block.to_row, block.to_col)
        return (*move, op, *place, scales, scales_pitch, block.scale_row, block.scale_col)


def _rows(found: Iterable[tuple[int, ...]]) -> np.ndarray:
    return np.array(list(found), np.int64).reshape(-1, NUM_COLUMNS)
