"""Expands transfers over layers and experts into the table of strided block copies that an executor reads."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hybridrl.reshard.plan import Transfer

Target = tuple[int, int, str]
"""Target layout, rank in it, tensor name."""


@dataclass(frozen=True, slots=True)
class Table:
    """The copies of one rank."""

    sources: list[str]
    targets: list[Target]
    boxes: np.ndarray
    """int64 [n, 8]: source index, target index, row and column in the source, row and column in the target,
    number of rows, number of columns."""


def tabulate(transfers: Iterable[Transfer]) -> Table:
    """Number the tensors, and make one row per box, layer and expert."""
    sources: dict[str, int] = {}
    targets: dict[Target, int] = {}
    parts = [_rows(transfer, sources, targets) for transfer in transfers]
    boxes = np.concatenate(parts) if parts else np.empty((0, 8), np.int64)
    return Table(list(sources), list(targets), boxes)


def _rows(transfer: Transfer, sources: dict[str, int], targets: dict[Target, int]) -> np.ndarray:
    """The boxes of a transfer, ordered by layer, then by expert."""
    (first, step), (to_first, to_step) = transfer.source_stack, transfer.target_stack
    experts, num_layers = transfer.experts, len(transfer.layers)
    rows = np.empty((num_layers, len(experts), len(transfer.boxes), 8), np.int64)
    rows[:] = [(0, 0, *box.source, *box.target, *box.shape) for box in transfer.boxes]
    names = _names(transfer.source_tensor, transfer, first)
    target, rank = transfer.target, transfer.target_rank
    to_names = [(target, rank, name) for name in _names(transfer.target_tensor, transfer, to_first)]
    numbers = [sources.setdefault(name, len(sources)) for name in names]
    to_numbers = [targets.setdefault(name, len(targets)) for name in to_names]
    rows[..., 0] = np.array(numbers).reshape(num_layers, -1, 1)
    rows[..., 1] = np.array(to_numbers).reshape(num_layers, -1, 1)
    if step or to_step:
        expert = np.arange(experts.start, experts.stop)[:, None]
        rows[..., 2] += (expert - first) * step
        rows[..., 4] += (expert - to_first) * to_step
    return rows.reshape(-1, 8)


def _names(pattern: str, transfer: Transfer, first: int) -> list[str]:
    """Tensor names by layer, and by expert if every expert has its own tensor."""
    if "#" not in pattern:
        before, star, after = pattern.partition("*")
        return [f"{before}{layer}{after}" for layer in transfer.layers] if star else [pattern]
    numbers = [str(expert - first) for expert in transfer.experts]
    parts = [pattern.replace("*", str(layer)).partition("#") for layer in transfer.layers]
    return [before + number + after for before, _, after in parts for number in numbers]
