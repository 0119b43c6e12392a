"""Transfers written out over layers and experts: the table of strided block copies that an executor reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hybridrl.layout.base import instance
from hybridrl.reshard.plan import Transfer

Target = tuple[int, int, str]
"""Target layout, rank in it, tensor name."""


@dataclass(frozen=True, slots=True)
class Table:
    """Copies of one rank."""

    sources: list[str]
    targets: list[Target]
    boxes: np.ndarray
    """int64 [n, 8]: source and target index; row and column in the source, in the target; rows, columns."""


def tabulate(transfers: Iterable[Transfer]) -> Table:
    """Number the tensors, and write out the layers and experts."""
    sources: dict[str, int] = {}
    targets: dict[Target, int] = {}
    parts = [_rows(transfer, sources, targets) for transfer in transfers]
    boxes = np.concatenate(parts) if parts else np.empty((0, 8), np.int64)
    return Table(list(sources), list(targets), boxes)


def _rows(transfer: Transfer, sources: dict[str, int], targets: dict[Target, int]) -> np.ndarray:
    """The boxes of a transfer: layer by layer, there expert by expert."""
    places = [(layer, expert) for layer in transfer.layers for expert in transfer.experts]
    first, step = transfer.source_stack
    to_first, to_step = transfer.target_stack
    target, rank = transfer.target, transfer.target_rank
    names = [instance(transfer.source_tensor, layer, expert - first) for layer, expert in places]
    to_names = [instance(transfer.target_tensor, layer, expert - to_first) for layer, expert in places]
    boxes = np.array([(0, 0, *box.source, *box.target, *box.shape) for box in transfer.boxes], np.int64)
    rows = np.tile(boxes, (len(places), 1))
    repeat = len(boxes)
    rows[:, 0] = np.repeat([sources.setdefault(name, len(sources)) for name in names], repeat)
    rows[:, 1] = np.repeat(
        [targets.setdefault((target, rank, name), len(targets)) for name in to_names], repeat
    )
    expert = np.repeat([expert for _, expert in places], repeat)
    rows[:, 2] += (expert - first) * step
    rows[:, 4] += (expert - to_first) * to_step
    return rows
