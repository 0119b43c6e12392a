"""What one tensor of a rank holds of a parameter. A vector counts as a matrix with one column."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

from hybridrl.layout.runs import Runs, size


class Box(NamedTuple):
    """A rectangle of one parameter; all fields are (row, column) pairs in elements."""

    at: tuple[int, int]
    """Start in the canonical parameter."""

    local: tuple[int, int]
    """Start in the holder's tensor."""

    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shard:
    """One tensor of a rank. Elements that no run covers are padding, which no plan writes."""

    param: str
    """Canonical name with the layer number."""

    shape: tuple[int, ...]
    """Shape of the tensor."""

    rows: Runs
    cols: Runs

    @property
    def is_padded(self) -> bool:
        """Whether some of the tensor is padding."""
        return size(self.rows) * size(self.cols) < prod(self.shape)

    def boxes(self) -> Iterator[Box]:
        """The rectangles of the parameter that this tensor holds."""
        for row, col in product(self.rows, self.cols):
            yield Box((row.at, col.at), (row.local, col.local), (row.length, col.length))
