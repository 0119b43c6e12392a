"""Large boxes that are contiguous in a tensor of this rank: they are sent from it or received into it.

Each side decides by itself: the other one may use a buffer for the same message.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.reshard.rounds import BufferLayout, Chunk
from hybridrl.reshard.table import Table


class Place(NamedTuple):
    """Elements of a contiguous tensor."""

    tensor: int
    """Its index in the sources or targets of the table."""

    start: int
    """Position of the first element."""

    chunk: Chunk

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes, which are in the tensor's own memory."""
        return self.box(tensor).view(torch.uint8).flatten()

    def box(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements, in the shape of the chunk."""
        rows, cols = self.chunk.shape
        return tensor.detach().view(-1)[self.start : self.start + rows * cols].view(rows, cols)


def places(load: BufferLayout, tensors: Sequence[torch.Tensor], *, of_targets: bool) -> dict[int, Place]:
    """Index of a span -> the place that it is sent from, or received into.

    Args:
        load: what a buffer holds in a round, outgoing or incoming.
        tensors: the sources of its table, or the targets.
    """
    found = {}
    for span, number in load.alone.items():
        source, target, from_row, from_col, to_row, to_col, rows, cols = load.table.boxes[number].tolist()
        chunk = load.parts[number if of_targets else target]
        index, row, col = (target, to_row, to_col) if of_targets else (source, from_row, from_col)
        tensor = tensors[index]
        width = tensor.shape[-1] if tensor.dim() else 1
        is_row_range = cols == width or rows == 1
        fits = col + cols <= width and (row + rows) * width <= tensor.numel()
        assert isinstance(chunk, Chunk), "FP8 blocks have no message of their own"
        if tensor.is_contiguous() and tensor.dtype == chunk.dtype and is_row_range and fits:
            found[span] = Place(index, row * width + col, chunk)
    return found


def staged(load: BufferLayout, without: dict[int, Place]) -> Table:
    """The table of a load without the boxes that need no buffer."""
    boxes = np.delete(load.table.boxes, [load.alone[span] for span in without], axis=0)
    return replace(load.table, boxes=boxes)
