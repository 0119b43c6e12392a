"""Runs kernels/native.c on CPU tensors: one call per phase copies, casts or quantises, and sums."""

import ctypes
import importlib.machinery
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard import kernels
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.checksum import col_factors, row_factors
from hybridrl.reshard.descriptors import COLS, OP, QUANTISE, ROWS, Descriptors, describe, held_by
from hybridrl.reshard.executors.base import Signature, Written, refuse_other_sources, signature, written
from hybridrl.reshard.kernels.reference import BLOCK
from hybridrl.reshard.table import Table

_ABI = 1
"""Interface version, equal to that in native.c. A library with another version is not used."""

_TILE_ELEMENTS = 1 << 16
"""Number of elements that a thread processes at a time."""


@dataclass(frozen=True, slots=True)
class Prepared:
    table: Table
    targets: tuple[torch.Tensor, ...]
    """Tensors in the order of the target bases. The reference keeps their memory alive."""

    signatures: tuple[Signature, ...]
    descriptors: Descriptors
    phases: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Per phase: descriptors, and the tiles that cover them."""

    target_bases: np.ndarray
    num_threads: int

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write as base.Prepared.write does. It releases the GIL."""
        refuse_other_sources(self.table, self.signatures, sources)
        source_bases = np.array([*(t.data_ptr() for t in sources), self.target_bases[-1]], np.int64)
        totals = np.zeros(len(self.target_bases), np.uint64)
        of_rows, of_cols = row_factors(self.descriptors.num_rows), col_factors(self.descriptors.num_words)
        bases = (_address(source_bases), _address(self.target_bases))
        factors = (_address(of_rows), _address(of_cols), _address(totals) if sums else None)
        for boxes, tiles in self.phases:
            _library().hybridrl_write(
                _address(boxes), _address(tiles), len(tiles), *bases, *factors, self.num_threads
            )
        return written(self.table, self.descriptors, totals.tolist() if sums else None)


def prepare(
    table: Table,
    sources: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor | BlockFP8],
    *,
    num_threads: int = 1,
) -> Prepared:
    """Prepare as base.Executor.prepare does.

    Args:
        num_threads: threads per write. Ranks that share a machine share its cores.
    """
    if not is_built():
        raise ResourceError(
            "the native executor is not built, or was built from other sources",
            fix="install a C compiler, then `pip install -e .` again; or use torch_copy",
        )
    descriptors = describe(table, sources, targets)
    held = held_by(targets, descriptors)
    for tensor in (*sources, *held):
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(f"the native executor moves CPU tensors, not one on {tensor.device}")
    bases = np.array([t.data_ptr() for t in held], np.int64)
    phases = tuple((boxes, _tiles(boxes)) for boxes in descriptors.phases)
    return Prepared(table, held, tuple(map(signature, sources)), descriptors, phases, bases, num_threads)


@cache
def is_built() -> bool:
    """Whether setup.py found a C compiler and the library matches these sources."""
    return _path() is not None and _library().hybridrl_abi() == _ABI


def _path() -> Path | None:
    folder = Path(kernels.__path__[0])
    built = (folder / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in built if path.exists()), None)


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(_path()))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.hybridrl_abi.restype = number
    library.hybridrl_write.restype = None
    library.hybridrl_write.argtypes = [pointer, pointer, number, *[pointer] * 5, number]
    return library


def _address(array: np.ndarray) -> int:
    return array.ctypes.data


def _tiles(boxes: np.ndarray) -> np.ndarray:
    """int64 [t, 5]: box, first row, rows, first column, columns. Tiles of quantised boxes are blocks."""
    rows, cols = boxes[:, ROWS], boxes[:, COLS]
    width = np.minimum(cols, _TILE_ELEMENTS)
    height = np.maximum(1, _TILE_ELEMENTS // width)
    height = np.where(boxes[:, OP] >= QUANTISE, np.maximum(BLOCK, height // BLOCK * BLOCK), height)
    across = -(-cols // width)
    count = across * -(-rows // height)
    box = np.repeat(np.arange(len(boxes)), count)
    within = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count)
    row, col = within // across[box] * height[box], within % across[box] * width[box]
    parts = (box, row, np.minimum(height[box], rows[box] - row), col, np.minimum(width[box], cols[box] - col))
    return np.ascontiguousarray(np.stack(parts, axis=1), np.int64)
