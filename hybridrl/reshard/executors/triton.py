"""Runs kernels/boxes.py: one launch for the copies and casts of a phase, and one for its FP8 blocks.

It needs a GPU. In Triton's interpreter (TRITON_INTERPRET=1) it also runs on CPU tensors, slowly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybridrl.errors import ResourceError
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.checksum import MODULUS, col_factors, row_factors
from hybridrl.reshard.descriptors import (
    CAST,
    COL,
    COLS,
    OP,
    QUANTISE,
    ROWS,
    SOURCE,
    SOURCE_OFFSET,
    SOURCE_PITCH,
    TARGET,
    TARGET_OFFSET,
    TARGET_PITCH,
    Descriptors,
    describe,
    held_by,
)
from hybridrl.reshard.executors.base import Signature, Written, refuse_other_sources, signature, written
from hybridrl.reshard.kernels.reference import BLOCK
from hybridrl.reshard.table import Table

_LONGEST_ROW = 1 << 30
"""Largest row length in units, because the kernel divides rows with 32-bit arithmetic."""


@dataclass(slots=True)
class Prepared:
    table: Table
    targets: tuple[torch.Tensor, ...]
    """Tensors in the order of the target bases. The reference keeps their memory alive."""

    signatures: tuple[Signature, ...]
    descriptors: Descriptors
    phases: list["_Phase"]
    factors: tuple[torch.Tensor, torch.Tensor]

    def write(self, sources: Sequence[torch.Tensor], *, sums: bool = True) -> Written:
        """Write as base.Prepared.write does."""
        refuse_other_sources(self.table, self.signatures, sources)
        device = self.factors[0].device
        held = ([*sources, self.targets[-1]], self.targets)
        addresses = [np.array([t.data_ptr() for t in tensors], np.int64) for tensors in held]
        bases = (_on(device, addresses[0]), _on(device, addresses[1]))
        totals = torch.zeros(len(self.targets), dtype=torch.int64, device=device) if sums else None
        for phase in self.phases:
            phase.launch(addresses, bases, self.factors, totals)
        if totals is not None:
            return written(self.table, self.descriptors, [total % MODULUS for total in totals.tolist()])
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return written(self.table, self.descriptors, None)


def prepare(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor | BlockFP8]
) -> Prepared:
    """Prepare as base.Executor.prepare does.

    Raises:
        ResourceError: the targets are not on a GPU, and Triton's interpreter is off.
    """
    from hybridrl.reshard.kernels import boxes

    descriptors = describe(table, sources, targets)
    held = held_by(targets, descriptors)
    device = held[-1].device
    if device.type != "cuda" and not boxes.INTERPRETED:
        raise ResourceError(
            f"Triton runs on a GPU, the targets are on {device}", fix="use the native executor"
        )
    others = {t.device for t in (*sources, *held)} - {device, torch.device("meta")}
    if others:
        raise ValueError(f"sources and targets are on {device} and on {', '.join(map(str, others))}")
    counts = (row_factors(descriptors.num_rows), col_factors(descriptors.num_words))
    factors = (_on(device, counts[0].view(np.int64)), _on(device, counts[1].view(np.int64)))
    phases = [_Phase(rows, device) for rows in descriptors.phases]
    return Prepared(table, held, tuple(map(signature, sources)), descriptors, phases, factors)


class _Phase:
    """Boxes on the device, with tiles that suit the address alignment of the last write."""

    def __init__(self, boxes: np.ndarray, device: torch.device) -> None:
        is_fp8 = boxes[:, OP] >= QUANTISE
        self._boxes = (boxes[~is_fp8], boxes[is_fp8])
        self._on_device = tuple(_on(device, part) for part in self._boxes)
        self._alignments: tuple[np.ndarray, ...] = ()
        self._tiles: tuple[torch.Tensor, ...] = ()

    def launch(
        self,
        addresses: Sequence[np.ndarray],
        bases: tuple[torch.Tensor, torch.Tensor],
        factors: tuple[torch.Tensor, torch.Tensor],
        sums: torch.Tensor | None,
    ) -> None:
        """
        Args:
            addresses: addresses of sources and of targets, on the host. `bases` has the same on the device.
        """
        from hybridrl.reshard.kernels import boxes

        alignments = tuple(
            (addresses[0][b[:, SOURCE]] | addresses[1][b[:, TARGET]]) & 15 for b in self._boxes
        )
        if not self._tiles or not all(map(np.array_equal, alignments, self._alignments)):
            tiles = (
                _strided_tiles(self._boxes[0], alignments[0]),
                _block_tiles(self._boxes[1], alignments[1]),
            )
            self._tiles = tuple(_on(bases[0].device, part) for part in tiles)
            self._alignments = alignments
        boxes.move(self._on_device[0], self._tiles[0], bases, factors, sums)
        boxes.quantise(self._on_device[1], self._tiles[1], bases, factors, sums)


def _on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, device=device)


def _strided_tiles(boxes: np.ndarray, alignment: np.ndarray) -> np.ndarray:
    """int64 [t, 3] as kernels/boxes.py reads it: box, first unit, form.

    Args:
        alignment: per box, the low four bits of its source base or-ed with those of its target base.

    Raises:
        ValueError: a row is too long.
    """
    from hybridrl.reshard.kernels.boxes import CAST_FORM, CAST_UNIT, TILE_UNITS

    cols, op = boxes[:, COLS], boxes[:, OP]
    size, places = np.int64(1) << np.minimum(op, 3), _places(boxes, alignment)
    # A unit of 16 bytes is two checksum words; a smaller unit must lie within one word.
    unit, at = _lowest_bit(places | cols * size | 16), boxes[:, COL] * size
    unit = np.where(at % 8, np.minimum(unit, _lowest_bit(at | 8)), unit)
    wide = _are_wide(boxes, alignment)
    copies = op < CAST
    form = np.where(copies, np.log2(unit).astype(np.int64), CAST_FORM + 2 * (op - CAST) + wide)
    row_units = np.where(copies, cols * size // unit, np.where(wide, cols // CAST_UNIT, cols))
    if (row_units > _LONGEST_ROW).any():
        raise ValueError(f"a row of {row_units.max()} units is more than {_LONGEST_ROW}: split it")
    box, within = _numbered(-(-boxes[:, ROWS] * row_units // TILE_UNITS))
    return np.stack([box, within * TILE_UNITS, form[box]], axis=1)


def _block_tiles(boxes: np.ndarray, alignment: np.ndarray) -> np.ndarray:
    """int64 [t, 3] as kernels/boxes.py reads it: box, number of the block in it, whether it is wide."""
    box, within = _numbered(-(-boxes[:, ROWS] // BLOCK) * -(-boxes[:, COLS] // BLOCK))
    return np.stack([box, within, _are_wide(boxes, alignment)[box]], axis=1)


def _are_wide(boxes: np.ndarray, alignment: np.ndarray) -> np.ndarray:
    """Which boxes can be read, written and summed in units of CAST_UNIT elements."""
    from hybridrl.reshard.kernels.boxes import CAST_UNIT

    aligned = _lowest_bit(_places(boxes, alignment) | 16) == 16
    return aligned & ((boxes[:, COLS] | boxes[:, COL]) % CAST_UNIT == 0)


def _places(boxes: np.ndarray, alignment: np.ndarray) -> np.ndarray:
    """Numbers whose lowest set bit is the alignment of all row starts of a box."""
    pitches = np.where(boxes[:, ROWS] > 1, boxes[:, SOURCE_PITCH] | boxes[:, TARGET_PITCH], 0)
    return alignment | boxes[:, SOURCE_OFFSET] | boxes[:, TARGET_OFFSET] | pitches


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(box i repeated counts[i] times, the numbers from 0 to counts[i] - 1 for each box)"""
    box = np.repeat(np.arange(len(counts)), counts)
    return box, np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts, counts)


def _lowest_bit(numbers: np.ndarray) -> np.ndarray:
    return numbers & -numbers
