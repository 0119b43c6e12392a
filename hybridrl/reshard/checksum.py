"""A 64-bit checksum of a tensor that is the same from the whole tensor or summed over the boxes that make it up.

    checksum = sum over elements x[r, c] of  row(r) * col(c div k) * (bits(x[r, c]) << 64 / k * (c mod k))  mod 2**64

row and col are fixed odd 64-bit numbers; k elements fill a 64-bit word (2 of fp32, 4 of bf16 or fp16). Rows and columns
are those of the holder's tensor; a vector is one row. It does not depend on the order of anything, so ranks add their
parts. A factor is odd, so one wrong element always shows; several cancel with a chance of at most 2**-16, 2**-64 when
they are spread over the tensor. Zeros add nothing: padding that is zero, or was never written after being zero, does
not matter.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch

from hybridrl.layout.shard import Box

_WORD_BYTES = 8
_STAGING_BYTES = 1 << 20
"""For boxes that do not start at a word, and dtypes that change on the way: one cache's worth."""

MODULUS = 1 << 64


def checksum(tensor: torch.Tensor, boxes: Iterable[Box] | None = None) -> int:
    """Checksum of a CPU tensor, or of the given boxes of it.

    Args:
        tensor: any shape and dtype; its last dimension is contiguous. All but the last dimension count as rows.
        boxes: as Shard.boxes() gives them; only `local` and `shape` are read.

    Returns:
        In [0, 2**64). Parts of one tensor add up modulo 2**64.
    """
    matrix = tensor.detach()
    matrix = matrix.reshape(1, -1) if matrix.dim() < 2 else matrix.flatten(0, -2)
    if boxes is None:
        return box_checksum(matrix, (0, 0))
    parts = (_as_matrix(box, tensor.dim()) for box in boxes)
    return sum(box_checksum(matrix[r : r + n, c : c + m], (r, c)) for r, c, n, m in parts) % MODULUS


def box_checksum(matrix: torch.Tensor, local: tuple[int, int]) -> int:
    """The part of a tensor's checksum that comes from the box whose values are `matrix` and that starts at `local`."""
    row, col = local
    num_rows, num_cols = matrix.shape
    if not matrix.numel():
        return 0
    per_word = _WORD_BYTES // matrix.element_size()
    factor = row_factors(row + num_rows)[row:]
    if not _is_words(matrix, col, per_word):
        return _staged(matrix, col, per_word, factor)
    words = _words(matrix)
    return _weighted(words, factor, col // per_word)


def row_factors(count: int) -> np.ndarray:
    """uint64 [>= count]: row(0), row(1), ..."""
    return _table(0x5851F42D4C957F2D, _round_up(count))[:count]


def col_factors(count: int) -> np.ndarray:
    """uint64 [>= count]: col(0), col(1), ..."""
    return _table(0x14057B7EF767814F, _round_up(count))[:count]


@lru_cache(maxsize=64)
def _table(seed: int, count: int) -> np.ndarray:
    """Odd numbers from splitmix64 (Steele, Lea, Flood 2014) over a counter: the same on every machine."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def _round_up(count: int) -> int:
    """To a power of two, so that few tables serve all sizes."""
    return 1 << max(10, (count - 1).bit_length())


def _is_words(matrix: torch.Tensor, col: int, per_word: int) -> bool:
    num_rows, num_cols = matrix.shape
    aligned = matrix.data_ptr() % _WORD_BYTES == 0 and (num_rows == 1 or matrix.stride(0) % per_word == 0)
    dense = num_cols == 1 or matrix.stride(1) == 1
    return aligned and dense and col % per_word == 0 and num_cols % per_word == 0


def _words(matrix: torch.Tensor) -> np.ndarray:
    """The same memory as uint64; one type for every dtype, since numpy has no bfloat16."""
    return matrix.view(_INTEGER[matrix.element_size()]).numpy().view(np.uint64)


_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _weighted(words: np.ndarray, row_factor: np.ndarray, first_word: int) -> int:
    # einsum's integer loop runs at the speed of memory and needs no temporary; a product mod 2**64 is what it computes.
    col_factor = col_factors(first_word + words.shape[1])[first_word:]
    sums = np.einsum("rw,w->r", words, col_factor)
    return int(np.einsum("r,r->", sums, row_factor))


def _staged(matrix: torch.Tensor, col: int, per_word: int, row_factor: np.ndarray) -> int:
    """Copy rows, a few at a time, to where they start at a word; the gaps are zero and add nothing."""
    num_rows, num_cols = matrix.shape
    lead = col % per_word
    width = -(-(lead + num_cols) // per_word) * per_word
    chunk = max(1, min(num_rows, _STAGING_BYTES // (width * matrix.element_size())))
    staging = torch.zeros(chunk, width, dtype=matrix.dtype)
    total = 0
    for first in range(0, num_rows, chunk):
        part = matrix[first : first + chunk]
        staging[: len(part), lead : lead + num_cols] = part
        total += _weighted(
            _words(staging[: len(part)]), row_factor[first : first + len(part)], col // per_word
        )
    return total % MODULUS


def _as_matrix(box: Box, dims: int) -> tuple[int, int, int, int]:
    (row, col), (num_rows, num_cols) = box.local, box.shape
    return (0, row, num_cols, num_rows) if dims < 2 else (row, col, num_rows, num_cols)
