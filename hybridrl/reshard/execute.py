"""Carries out transfers on CPU tensors: a table of strided block copies, with a cast where the dtypes differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hybridrl.layout.base import instance
from hybridrl.reshard.checksum import MODULUS, box_checksum
from hybridrl.reshard.plan import Transfer

_STAGING_BYTES = 1 << 22
"""Rows that are cast pass through a buffer of this size, where their checksum is taken too."""

Target = tuple[int, int, str]
"""Target layout, rank in it, tensor name."""


@dataclass(frozen=True, slots=True)
class Table:
    """Transfers of one rank, expanded over layers: what an executor or a kernel reads."""

    sources: list[str]
    targets: list[Target]
    boxes: np.ndarray
    """int64 [n, 8]: source index, target index, source row, source column, target row, target column, rows, columns."""


@dataclass(frozen=True, slots=True)
class Written:
    bytes: int
    """Of the targets."""

    staging_bytes: int
    """Size of the largest buffer that was used on the way."""

    checksums: dict[Target, int]
    """The part of each target tensor's checksum that comes from what was written here."""


def tabulate(transfers: Iterable[Transfer]) -> Table:
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
        sources, targets: in the order of the table; vectors, or matrices, or more dimensions of which all but the last
            count as rows.
    """
    sources, targets = [_matrix(t) for t in sources], [_matrix(t) for t in targets]
    pairs = list(_views(table, sources, targets))
    if pairs:
        torch._foreach_copy_([target for _, target, _, _ in pairs], [source for source, _, _, _ in pairs])


def copy_and_sum(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> Written:
    """Write every box, and take the checksum of the values that were sent: a box that arrives damaged will show."""
    sources, targets = [_matrix(t) for t in sources], [_matrix(t) for t in targets]
    sums = [0] * len(targets)
    written = staging = 0
    for source, target, index, local in _views(table, sources, targets):
        for first, part in _chunks(source, target.dtype):
            rows = target[first : first + len(part)]
            rows.copy_(part)
            sums[index] += box_checksum(part, (local[0] + first, local[1]))
            staging = max(staging, part.numel() * part.element_size() if part.dtype != source.dtype else 0)
        written += target.numel() * target.element_size()
    return Written(
        written, staging, {name: total % MODULUS for name, total in zip(table.targets, sums, strict=True)}
    )


def _views(table: Table, sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]):
    """(source box, target box, target index, where the box starts in the target), box by box."""
    for source, target, row, col, to_row, to_col, rows, cols in table.boxes.tolist():
        yield (
            sources[source][row : row + rows, col : col + cols],
            targets[target][to_row : to_row + rows, to_col : to_col + cols],
            target,
            (to_row, to_col),
        )


def _chunks(source: torch.Tensor, dtype: torch.dtype) -> Iterable[tuple[int, torch.Tensor]]:
    """(first row, rows in `dtype`): all at once where nothing is cast."""
    if source.dtype == dtype:
        return [(0, source)]
    rows = max(1, _STAGING_BYTES // (source.shape[1] * dtype.itemsize))
    return ((first, source[first : first + rows].to(dtype)) for first in range(0, len(source), rows))


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor.flatten(0, -2)
