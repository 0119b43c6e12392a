"""The schedule of an exchange, without a single message: boxes in messages, messages in waves.

A rank knows only its own boxes. Messages have one order over all ranks: their number among those of the pair,
then how far apart the two ranks are. A wave is a stretch of that order and is waited for as a whole. So the
first message that is not through is in the present wave of both its ranks: ranks never wait in a circle,
whatever the pattern, and the waves of two ranks need not match.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from hybridrl.reshard.table import Table, Target

BUFFERS = 2
"""Of each direction: one is filled or emptied while the other is on its way."""

_MESSAGE_BYTES = 32 << 20
"""Ranks that share cores pay more for a word between them than for the bytes: few messages, and long ones."""

_ROUNDS = 4
"""At least, if messages are many: packing and unpacking then hide behind what is on its way."""

_ROUND_OPERATIONS = 1024
"""At most: NCCL hangs on groups of many thousand."""

_ALIGNMENT = 16
"""Bytes, of every box in a message: kernels then read and write vectors."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of what a rank sends to a peer, who has the other: equal targets and boxes, in this order."""

    table: Table
    """The receiver ignores where its boxes lie in the sources."""

    dtypes: tuple[torch.dtype, ...]
    """Of table.targets. This is what travels: casts come before the wire."""

    def digest(self, message_bytes: int) -> int:
        """int64, equal only if both sides cut the same messages for the same places; 0 if there are none."""
        if not len(self.table.boxes):
            return 0
        places = np.ascontiguousarray(self.table.boxes[:, [1, 4, 5, 6, 7]])
        head = repr((message_bytes, self.table.targets, self.dtypes)).encode()
        found = hashlib.sha256(head + places.tobytes()).digest()
        return int.from_bytes(found[:8], "little", signed=True)


class Bounds(NamedTuple):
    """The largest message, and the largest wave in one direction."""

    message_bytes: int
    """A multiple of the alignment."""

    round_bytes: int

    @classmethod
    def of(cls, staging_bytes: int) -> "Bounds":
        """
        Raises:
            ValueError: that little holds no message.
        """
        round_bytes = staging_bytes // (2 * BUFFERS)
        if round_bytes < _ALIGNMENT:
            least = 2 * BUFFERS * _ALIGNMENT
            raise ValueError(f"staging of {staging_bytes} bytes holds no message: give at least {least}")
        return cls(min(_MESSAGE_BYTES, round_bytes) // _ALIGNMENT * _ALIGNMENT, round_bytes)


class Chunk(NamedTuple):
    """A box in a buffer, and the place in a target that it is for."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, int]
    target: Target
    at: tuple[int, int]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        (rows, cols), size = self.shape, self.dtype.itemsize
        return buffer[self.start : self.start + rows * cols * size].view(self.dtype).view(rows, cols)


class Span(NamedTuple):
    """One point-to-point operation: bytes of a buffer."""

    peer: int
    start: int
    stop: int


class Load(NamedTuple):
    """What a buffer holds in one wave: messages one behind the other."""

    spans: list[Span]
    pieces: list[Chunk]
    table: Table
    """Between this rank's tensors and the pieces, which have the names of their targets."""

    @property
    def num_bytes(self) -> int:
        return self.spans[-1].stop if self.spans else 0

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The pieces as tensors."""
        return [chunk.view(buffer) for chunk in self.pieces]


class Round(NamedTuple):
    """What a rank has under way at a time."""

    outgoing: Load
    incoming: Load
    """Spans of messages from near peers are empty."""

    near: dict[int, Load]
    """By place among the incoming spans: a message that is read where its sender packed it."""

    @property
    def received_bytes(self) -> int:
        return self.incoming.num_bytes + sum(load.num_bytes for load in self.near.values())


class _Message(NamedTuple):
    order: tuple[int, int]
    """(number among the messages of the pair, distance of the pair): the same on both ranks."""

    peer: int
    outgoing: bool
    side: Side
    boxes: np.ndarray
    """int64 [n, 8], as in Table."""

    ends: np.ndarray
    """int64 [n]: the byte where the next box begins."""

    @property
    def num_bytes(self) -> int:
        return int(self.ends[-1])


def rounds(
    rank: int,
    size: int,
    sends: Mapping[int, Side],
    receives: Mapping[int, Side],
    bounds: Bounds,
    near: Collection[int] = (),
) -> list[Round]:
    """All of a rank's part, in the order in which it must be posted; every wave has an operation.

    Args:
        rank, size: of the group.
        sends, receives: by peer.
        near: peers whose outgoing buffers this rank reads.
    """
    queue = [
        _Message((number, distance), peer, outgoing, side, boxes, ends)
        for outgoing, sides in ((True, sends), (False, receives))
        for peer, side in sides.items()
        for distance in [(peer - rank if outgoing else rank - peer) % size]
        for number, (boxes, ends) in enumerate(_messages(side, bounds.message_bytes))
    ]
    queue.sort(key=lambda message: message.order)
    most = max(sum(m.num_bytes for m in queue if m.outgoing == outgoing) for outgoing in (True, False))
    round_bytes = min(bounds.round_bytes, max(bounds.message_bytes, most // _ROUNDS))
    return [_round(round_, near) for round_ in _rounds(queue, round_bytes)]


def _round(messages: Sequence[_Message], near: Collection[int]) -> Round:
    incoming = [message for message in messages if not message.outgoing]
    return Round(
        _load([message for message in messages if message.outgoing], outgoing=True),
        _load(incoming, outgoing=False, near=near),
        {i: _load([m], outgoing=False) for i, m in enumerate(incoming) if m.peer in near},
    )


def _messages(side: Side, message_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes in as few messages as their order allows, and the byte where each ends."""
    item_bytes = np.array([dtype.itemsize for dtype in side.dtypes], np.int64)
    boxes = _cut(side.table.boxes, item_bytes, message_bytes)
    used = boxes[:, 6] * boxes[:, 7] * item_bytes[boxes[:, 1]]
    ends = np.cumsum(-(-used // _ALIGNMENT) * _ALIGNMENT)
    first = before = 0
    while first < len(boxes):
        stop = int(np.searchsorted(ends, before + message_bytes, side="right"))
        yield boxes[first:stop], ends[first:stop] - before
        first, before = stop, int(ends[stop - 1])


def _cut(boxes: np.ndarray, item_bytes: np.ndarray, message_bytes: int) -> np.ndarray:
    """Boxes that fit into a message: cut by rows, and by columns where one row does not fit."""
    size, rows, cols = item_bytes[boxes[:, 1]], boxes[:, 6], boxes[:, 7]
    col_step = np.clip(cols, 1, message_bytes // size)
    row_step = np.maximum(1, message_bytes // (col_step * size))
    across = -(-cols // col_step)
    count = across * -(-rows // row_step)
    box = np.repeat(np.arange(len(boxes)), count)
    part = np.arange(len(box)) - (np.cumsum(count) - count)[box]
    row, col = part // across[box] * row_step[box], part % across[box] * col_step[box]
    pieces = boxes[box]
    pieces[:, 2:6] += np.stack([row, col, row, col], axis=1)
    pieces[:, 6] = np.minimum(row_step[box], rows[box] - row)
    pieces[:, 7] = np.minimum(col_step[box], cols[box] - col)
    return pieces


def _rounds(queue: Sequence[_Message], round_bytes: int) -> Iterator[list[_Message]]:
    """Cut the queue where a buffer is full.

    What a rank sends and receives at one place of the order stays together: the ranks of a ring would
    otherwise all wait for their sends, each with its receive in the next wave.
    """
    round_: list[_Message] = []
    room = {True: round_bytes, False: round_bytes}
    for _, found in groupby(queue, lambda message: message.order):
        together = list(found)
        full = any(message.num_bytes > room[message.outgoing] for message in together)
        if full or len(round_) + len(together) > _ROUND_OPERATIONS:
            yield round_
            round_, room = [], {True: round_bytes, False: round_bytes}
        for message in together:
            room[message.outgoing] -= message.num_bytes
        round_ += together
    if round_:
        yield round_


def _load(messages: Sequence[_Message], *, outgoing: bool, near: Collection[int] = ()) -> Load:
    spans: list[Span] = []
    pieces: list[Chunk] = []
    rows: list[tuple[int, ...]] = []
    names: dict[Any, int] = {}
    start = 0
    for message in messages:
        if message.peer in near:
            spans.append(Span(message.peer, start, start))
            continue
        begins = [0, *message.ends[:-1].tolist()]
        for begin, box in zip(begins, message.boxes.tolist(), strict=True):
            row = (_outgoing if outgoing else _incoming)(message.side.table, box, names, len(pieces))
            rows.append(row)
            pieces.append(_chunk(message.side, box, start + begin))
        spans.append(Span(message.peer, start, start + message.num_bytes))
        start += message.num_bytes
    staged = [chunk.target for chunk in pieces]
    sources, targets = (list(names), staged) if outgoing else ([name for _, _, name in staged], list(names))
    return Load(spans, pieces, Table(sources, targets, np.array(rows, np.int64).reshape(-1, 8)))


def _chunk(side: Side, box: Sequence[int], start: int) -> Chunk:
    _, target, _, _, row, col, rows, cols = box
    return Chunk(start, side.dtypes[target], (rows, cols), side.table.targets[target], (row, col))


def _outgoing(table: Table, box: Sequence[int], names: dict[str, int], chunk: int) -> tuple[int, ...]:
    """From a source into a piece."""
    source, _, row, col, _, _, rows, cols = box
    return names.setdefault(table.sources[source], len(names)), chunk, row, col, 0, 0, rows, cols


def _incoming(table: Table, box: Sequence[int], names: dict[Target, int], chunk: int) -> tuple[int, ...]:
    """From a piece into a target."""
    _, target, _, _, row, col, rows, cols = box
    return chunk, names.setdefault(table.targets[target], len(names)), 0, 0, row, col, rows, cols
