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
    (first, step), (to_first, to_step) = transfer.source_stack, transfer.target_stack
    experts = np.arange(transfer.experts.start, transfer.experts.stop)
    count, repeat = len(transfer.layers) * len(experts), len(transfer.boxes)
    boxes = np.array([(0, 0, *box.source, *box.target, *box.shape) for box in transfer.boxes], np.int64)
    rows = np.tile(boxes, (count, 1))
    names = _names(transfer.source_tensor, transfer, first)
    place = (transfer.target, transfer.target_rank)
    to_names = [(*place, name) for name in _names(transfer.target_tensor, transfer, to_first)]
    numbers = [sources.setdefault(name, len(sources)) for name in names]
    to_numbers = [targets.setdefault(name, len(targets)) for name in to_names]
    rows[:, 0] = np.repeat(numbers, count // len(numbers) * repeat)
    rows[:, 1] = np.repeat(to_numbers, count // len(to_numbers) * repeat)
    expert = np.tile(np.repeat(experts, repeat), len(transfer.layers))
    rows[:, 2] += (expert - first) * step
    rows[:, 4] += (expert - to_first) * to_step
    return rows


def _names(pattern: str, transfer: Transfer, first: int) -> list[str]:
    """By layer; and by expert, where each has its own tensor."""
    if "#" not in pattern:
        return [instance(pattern, layer) for layer in transfer.layers]
    numbers = [str(expert - first) for expert in transfer.experts]
    parts = [pattern.replace("*", str(layer)).partition("#") for layer in transfer.layers]
    return [before + number + after for before, _, after in parts for number in numbers]
