"""Carries out transfers on CPU tensors: a table of strided block copies, with a cast where dtypes differ."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybridrl.layout.base import instance
from hybridrl.reshard.checksum import MODULUS, as_matrix, box_checksum
from hybridrl.reshard.plan import Transfer

_STAGING_BYTES = 1 << 22
"""Rows that are cast pass through a buffer of about this size, where their checksum is taken too."""

Target = tuple[int, int, str]
"""Target layout, rank in it, tensor name."""


@dataclass(frozen=True, slots=True)
class Table:
    """Transfers of one rank, expanded over layers: what an executor or a kernel reads."""

    sources: list[str]
    targets: list[Target]
    boxes: np.ndarray
    """int64 [n, 8]: source and target index; row and column in the source, in the target; rows, columns."""


@dataclass(frozen=True, slots=True)
class Written:
    bytes: int
    """Of the targets."""

    staging_bytes: int
    """The largest buffer that was used on the way."""

    checksums: dict[Target, int]
    """The part of each target tensor's checksum that comes from what was written here."""


def tabulate(transfers: Iterable[Transfer]) -> Table:
    """Number the tensors and write out the layers."""
    sources: dict[str, int] = {}
    targets: dict[Target, int] = {}
    boxes = []
    for transfer in transfers:
        for layer in transfer.layers:
            name = (transfer.target, transfer.target_rank, instance(transfer.target_tensor, layer))
            source = sources.setdefault(instance(transfer.source_tensor, layer), len(sources))
            target = targets.setdefault(name, len(targets))
            boxes += [(source, target, *box.source, *box.target, *box.shape) for box in transfer.boxes]
    return Table(list(sources), list(targets), np.array(boxes, np.int64).reshape(-1, 8))


def copy(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Write every box.

    Args:
        sources, targets: in the order of the table, of any dimensions; all but the last count as rows.
    """
    for values, place, _, _ in _boxes(table, sources, targets):
        place.copy_(values)


def copy_and_sum(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> Written:
    """Write every box, and sum what was sent, not what arrived: a box that arrives damaged will show."""
    sums = [0] * len(targets)
    written = staging_bytes = 0
    for source, target, index, (row, col) in _boxes(table, sources, targets):
        for first, part in _in_dtype(source, target.dtype):
            target[first : first + len(part)].copy_(part)
            sums[index] += box_checksum(part, (row + first, col))
            if part.dtype != source.dtype:
                staging_bytes = max(staging_bytes, part.nbytes)
        written += target.nbytes
    checksums = {name: total % MODULUS for name, total in zip(table.targets, sums, strict=True)}
    return Written(written, staging_bytes, checksums)


def _boxes(
    table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int, tuple[int, int]]]:
    """(values, place, target index, where the place starts in the target), box by box."""
    sources, targets = [as_matrix(t) for t in sources], [as_matrix(t) for t in targets]
    for source, target, row, col, to_row, to_col, rows, cols in table.boxes.tolist():
        values = sources[source].narrow(0, row, rows).narrow(1, col, cols)
        place = targets[target].narrow(0, to_row, rows).narrow(1, to_col, cols)
        yield values, place, target, (to_row, to_col)


def _in_dtype(values: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows in `dtype`): all rows at once where nothing is cast."""
    if values.dtype == dtype:
        yield 0, values
        return
    num_rows, num_cols = values.shape
    step = min(num_rows, max(1, _STAGING_BYTES // (num_cols * dtype.itemsize)))
    staging = torch.empty(step, num_cols, dtype=dtype)
    for first in range(0, num_rows, step):
        rows = values[first : first + step]
        yield first, staging[: len(rows)].copy_(rows)
