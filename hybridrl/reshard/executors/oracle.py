"""The reference executor: element by element in NumPy. Other executors are tested against it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.checksum import MODULUS, as_matrix, col_factors, row_factors
from hybridrl.reshard.descriptors import FLOATS, describe
from hybridrl.reshard.executors.base import Signature, Written, refuse_other_sources, signature
from hybridrl.reshard.table import Table

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Cell = tuple[int, int, int]
"""(bits of an element as an unsigned number, row in its target, column in its target)"""


@dataclass(frozen=True, slots=True)
class Prepared:
    table: Table
    targets: tuple[torch.Tensor | BlockFP8, ...]
    signatures: tuple[Signature, ...]

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write as base.Prepared.write does."""
        refuse_other_sources(self.table, self.signatures, sources)
        written, checksums, scale_checksums = 0, {}, {}
        for index, (name, target) in enumerate(zip(self.table.targets, self.targets, strict=True)):
            boxes = [box for box in self.table.boxes.tolist() if box[1] == index]
            if isinstance(target, BlockFP8):
                blocks = list(_quantise(boxes, sources, target))
                scale_checksums[name] = _store([scale for scale, _ in blocks], target.scales)
                cells, values = [cell for _, block in blocks for cell in block], target.values
                written += 4 * len(blocks)
            else:
                cells, values = (
                    [c for box in boxes for c in _cast(box, sources[box[0]], target.dtype)],
                    target,
                )
            checksums[name] = _store(cells, values)
            written += len(cells) * values.element_size()
        return Written(written, 0, checksums if sums else {}, scale_checksums if sums else {})


def prepare(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Prepared:
    """Prepare as base.Executor.prepare does."""
    describe(table, sources, targets)
    return Prepared(table, tuple(targets), tuple(map(signature, sources)))


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor as a matrix of unsigned integers."""
    size = tensor.element_size()
    return as_matrix(tensor).view(_INTEGER[size]).numpy().view(_UNSIGNED[size])


def _store(cells: Sequence[Cell], target: torch.Tensor) -> int:
    """Store the elements and return their checksum."""
    bits, per_word, total = _bits(target), 8 // target.element_size(), 0
    rows, cols = row_factors(bits.shape[0]), col_factors(bits.shape[1])
    for value, row, col in cells:
        bits[row, col] = value
        word = value << (64 // per_word * (col % per_word))
        total += int(rows[row]) * int(cols[col // per_word]) * word
    return total % MODULUS


def _cast(box: list[int], source: torch.Tensor, dtype: torch.dtype) -> Iterator[Cell]:
    _, _, row, col, to_row, to_col, rows, cols = box
    part = _bits(source)[row : row + rows, col : col + cols]
    if dtype != source.dtype:
        part = _bits_of(_float32(part, source.dtype), dtype)
    yield from ((int(part[i, j]), to_row + i, to_col + j) for i in range(rows) for j in range(cols))


def _float32(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Values of a dtype in FLOATS as float32, which represents all of them exactly."""
    assert dtype in FLOATS
    if dtype == torch.bfloat16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return (
        np.ascontiguousarray(bits)
        .view(np.float16 if dtype == torch.float16 else np.float32)
        .astype(np.float32)
    )


def _bits_of(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Bits of float32 values in a dtype, rounded to nearest even. Every NaN becomes the quiet NaN."""
    if dtype == torch.float32:
        return values.view(np.uint32)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return np.where(np.isnan(values), np.float16(np.nan), values.astype(np.float16)).view(np.uint16)
    wide = values.view(np.uint32).astype(np.uint64)
    rounded = (wide + 0x7FFF + (wide >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _quantise(
    boxes: list[list[int]], sources: Sequence[torch.Tensor], target: BlockFP8
) -> Iterator[tuple[Cell, list[Cell]]]:
    """(scale, values) of every block that the boxes write."""
    height, num_cols = target.values.shape[-2:]
    weight = np.full(_bits(target.values).shape, np.nan, np.float32)
    written = np.zeros(weight.shape, bool)
    for source, _, row, col, to_row, to_col, rows, cols in boxes:
        part = _bits(sources[source])[row : row + rows, col : col + cols]
        weight[to_row : to_row + rows, to_col : to_col + cols] = _float32(part, sources[source].dtype)
        written[to_row : to_row + rows, to_col : to_col + cols] = True
    for start in range(0, len(weight), height):
        for row in range(0, height, 128):
            for col in range(0, num_cols, 128):
                first, last = start + row, start + min(row + 128, height)
                block = weight[first:last, col : col + 128]
                if not written[first, col]:
                    continue
                scale, codes = _quantised(block, target.power_of_two)
                place = target.scale_place(start // height, row // 128, col // 128)
                values = [(int(codes[i, j]), first + i, col + j) for i, j in np.ndindex(*block.shape)]
                yield (int(scale.view(np.uint32)), *place), values


def _quantised(block: np.ndarray, power_of_two: bool) -> tuple[np.float32, np.ndarray]:
    amax = np.maximum(np.abs(block).max(), np.float32(1e-4))
    scale, factor = amax / np.float32(448), np.float32(1) / amax * np.float32(448)
    if power_of_two:
        scale = np.float32(2.0 ** np.ceil(np.log2(float(scale))))
        factor = np.float32(1) / scale
    return scale, _codes(block * factor)


_E4M3 = np.array(
    [m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:127]
)
"""The 127 E4M3 values from 0 to 448, indexed by code."""


def _codes(values: np.ndarray) -> np.ndarray:
    """Code of the nearest E4M3 value; a tie goes to the even code."""
    size = np.abs(values).astype(np.float64)
    above = np.clip(np.searchsorted(_E4M3, size), 1, 126)
    down, up = size - _E4M3[above - 1], _E4M3[above] - size
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, above - 1)
    return code.astype(np.uint8) | (np.signbit(values).astype(np.uint8) << np.uint8(7))
