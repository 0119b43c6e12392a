"""A 64-bit checksum of a tensor that is additive over the boxes that make it up.

    sum over elements x[r, c] of  row(r) * col(c div k) * bits(x[r, c]) << (64 / k) * (c mod k)   modulo 2**64

row and col are fixed odd 64-bit numbers; k elements fill a 64-bit word (2 of fp32, 4 of bf16 or fp16). Rows
and columns are those of the holder's tensor; a vector is one row. The order of summation does not matter, so
ranks can add their parts. The factors are odd, so a single wrong element always changes the checksum. Several
errors cancel with probability 2**-64, or 2**-15 if two elements at the top of their words are swapped.
Zero bits add nothing, so zero padding does not change the checksum.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch

from hybridrl.layout.shard import Box

MODULUS = 1 << 64

_WORD_BYTES = 8
_STAGING_BYTES = 1 << 20
"""Size of the buffer for boxes that do not start and end at a word boundary."""

_DEVICE_WORDS = 1 << 24
"""Words that one step on a GPU makes a temporary tensor for: 128 MiB."""

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Element size -> integer dtype. Only the bits matter, and numpy has no bfloat16."""


def checksum(tensor: torch.Tensor, boxes: Iterable[Box] | None = None) -> int:
    """Checksum of a tensor, or of some boxes of it, computed on the tensor's device.

    Args:
        tensor: any dtype of 1 to 8 bytes and any number of dimensions. All but the last count as rows.
        boxes: boxes from Shard.boxes(), of which only `local` and `shape` are read; None: the whole tensor.

    Returns:
        A number in [0, 2**64). Checksums of parts of one tensor add up modulo 2**64.
    """
    matrix = as_matrix(tensor)
    if boxes is None:
        return box_checksum(matrix, (0, 0))
    total = 0
    for box in boxes:
        (row, col), (rows, cols) = (
            (box.local, box.shape) if tensor.dim() > 1 else (box.local[::-1], box.shape[::-1])
        )
        total += box_checksum(matrix[row : row + rows, col : col + cols], (row, col))
    return total % MODULUS


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a plan treats it: a vector is one row, and all dimensions but the last are rows."""
    tensor = tensor.detach()
    return tensor.view(1, -1) if tensor.dim() < 2 else tensor.flatten(0, -2)


def box_checksum(values: torch.Tensor, start: tuple[int, int]) -> int:
    """What the box with these values, which starts at `start`, adds to the checksum of its tensor."""
    row, col = start
    num_rows, num_cols = values.shape
    per_word = _WORD_BYTES // values.element_size()
    of_rows = row_factors(row + num_rows)[row : row + num_rows]
    if _is_words(values, col, per_word):
        return _weighted_sum(values, of_rows, col // per_word)
    lead = col % per_word
    width = -(-(lead + num_cols) // per_word) * per_word
    step = max(1, min(num_rows, _STAGING_BYTES // (width * values.element_size())))
    # Zeros around the values add nothing, and the padded values start at a word boundary.
    staging = torch.zeros(step, width, dtype=values.dtype, device=values.device)
    total = 0
    for first in range(0, num_rows, step):
        rows = staging[: min(step, num_rows - first)]
        rows[:, lead : lead + num_cols] = values[first : first + step]
        total += _weighted_sum(rows, of_rows[first : first + step], col // per_word)
    return total % MODULUS


def row_factors(count: int) -> np.ndarray:
    """row(r) in the module's formula, for at least the first `count` rows: odd uint64."""
    return _factors(_ROW_SEED, count)


def col_factors(count: int) -> np.ndarray:
    """col(w) in the module's formula, for at least the first `count` words of a row: odd uint64."""
    return _factors(_COL_SEED, count)


def _is_words(values: torch.Tensor, col: int, per_word: int) -> bool:
    num_rows, num_cols = values.shape
    if col % per_word or num_cols % per_word or values.data_ptr() % _WORD_BYTES or values.stride(1) != 1:
        return False
    return num_rows == 1 or values.stride(0) % per_word == 0


def _weighted_sum(values: torch.Tensor, of_rows: np.ndarray, first_word: int) -> int:
    bits = values.view(_INTEGER[values.element_size()])
    num_words = values.shape[1] * values.element_size() // _WORD_BYTES
    of_cols = col_factors(first_word + num_words)[first_word : first_word + num_words]
    if bits.device.type != "cpu":
        return weighted_sum_by_torch(bits, of_rows, of_cols)
    # Integer einsum needs one pass at memory bandwidth, makes no temporary, and wraps modulo 2**64.
    return int(np.dot(np.einsum("rw,w->r", bits.numpy().view(np.uint64), of_cols), of_rows))


def weighted_sum_by_torch(bits: torch.Tensor, of_rows: np.ndarray, of_cols: np.ndarray) -> int:
    """The weighted sum on any device, in steps that bound the temporaries. torch's int64 wraps too."""
    words = bits.contiguous().view(torch.int64)
    rows, cols = (
        torch.from_numpy(f.view(np.int64)).to(words.device, non_blocking=True) for f in (of_rows, of_cols)
    )
    step = max(1, _DEVICE_WORDS // max(1, words.shape[1]))
    parts = [
        ((words[first : first + step] * cols).sum(1) * rows[first : first + step]).sum()
        for first in range(0, len(words), step)
    ]
    return int(torch.stack(parts).sum()) % MODULUS if parts else 0


_ROW_SEED, _COL_SEED = 0x5851F42D4C957F2D, 0x14057B7EF767814F


def _factors(seed: int, count: int) -> np.ndarray:
    """At least `count` odd uint64. The counts are rounded up to a few sizes, so that tables are reused."""
    return _table(seed, 1 << max(10, (count - 1).bit_length()))


@lru_cache(maxsize=64)
def _table(seed: int, count: int) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood 2014) of a counter, made odd; the same on every machine."""
    z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)
