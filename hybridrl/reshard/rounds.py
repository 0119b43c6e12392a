"""The schedule of an exchange, before anything is sent: boxes are packed into messages, messages into rounds.

A rank knows only its own boxes. All ranks order messages by the same key: the message's number within its
pair of ranks, then the distance between the two ranks. A round is a contiguous part of that order, and a rank
waits for a whole round. The first message that has not arrived is therefore in the current round of both its
ranks. So ranks never deadlock, whatever the pattern, and the rounds of two ranks need not match.

Block FP8 is quantised by the sender. Its boxes are sent as chunks of whole blocks, each with its scales.

A large box can have a message of its own. Where the box is contiguous in the tensor of one side, that side
needs no buffer for it, whatever the other side does.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from hybridrl.layout.blocks import BLOCK, num_blocks
from hybridrl.reshard.block_fp8 import BlockFP8
from hybridrl.reshard.table import Table, Target

BUFFERS = 2
"""Buffers per direction: one is packed or unpacked while the other is in flight."""

_MESSAGE_BYTES = 32 << 20
"""Largest message. Ranks that share cores pay more per message than per byte, so messages are long."""

_ROUNDS = 4
"""Least number of rounds, if there are enough messages: packing and unpacking then overlap with transport."""

_ROUND_OPERATIONS = 1024
"""Most operations per round: NCCL hangs on groups of many thousands."""

_ALONE_BYTES = 1 << 20
"""Least size of a box that has a message of its own: it costs less than the copies that it saves."""

_ALIGNMENT = 16
"""Alignment of every box in a message, in bytes: kernels can then read and write vectors."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of what a rank sends to another. Both sides have equal targets and boxes, in equal order."""

    table: Table
    """The boxes. The receiver ignores their positions in the sources."""

    dtypes: tuple[torch.dtype, ...]
    """Dtypes of table.targets. Values are cast to them before they are sent."""

    scales: Mapping[int, Target] = field(default_factory=dict)
    """Index of a target that the sender quantises in blocks -> the target of its scales."""

    def places(self) -> Iterator[tuple[Target, torch.dtype]]:
        """All targets, those of scales included, with their dtypes."""
        yield from zip(self.table.targets, self.dtypes, strict=True)
        yield from ((name, torch.float32) for name in self.scales.values())

    def digest(self, message_bytes: int) -> int:
        """int64, equal only if both sides make the same messages for the same targets; 0 without boxes."""
        if not len(self.table.boxes):
            return 0
        places = np.ascontiguousarray(self.table.boxes[:, [1, 4, 5, 6, 7]])
        head = repr((message_bytes, self.table.targets, self.dtypes, sorted(self.scales))).encode()
        found = hashlib.sha256(head + places.tobytes()).digest()
        return int.from_bytes(found[:8], "little", signed=True)


class Bounds(NamedTuple):
    """Largest message, and most bytes of a round in one direction."""

    message_bytes: int
    """A multiple of the alignment."""

    round_bytes: int

    @classmethod
    def of(cls, staging_bytes: int) -> "Bounds":
        """The bounds that keep all buffers of a rank within `staging_bytes`.

        Raises:
            ValueError: so few bytes hold no message.
        """
        round_bytes = staging_bytes // (2 * BUFFERS)
        if round_bytes < _ALIGNMENT:
            least = 2 * BUFFERS * _ALIGNMENT
            raise ValueError(f"staging of {staging_bytes} bytes holds no message: give at least {least}")
        return cls(min(_MESSAGE_BYTES, round_bytes) // _ALIGNMENT * _ALIGNMENT, round_bytes)


class Chunk(NamedTuple):
    """A box in a buffer, and its position in a target."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, int]
    target: Target
    at: tuple[int, int]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        (rows, cols), size = self.shape, self.dtype.itemsize
        return buffer[self.start : self.start + rows * cols * size].view(self.dtype).view(rows, cols)


class Quantised(NamedTuple):
    """A chunk of whole FP8 blocks, and the chunk of their scales."""

    values: Chunk
    scales: Chunk


class Span(NamedTuple):
    """One point-to-point operation on bytes [start, stop) of a buffer."""

    peer: int
    start: int
    stop: int


class BufferLayout(NamedTuple):
    """What a buffer holds in one round: messages, end to end."""

    spans: list[Span]
    chunks: list[Chunk]
    table: Table
    """Copies between this rank's tensors and the parts, which are named after their targets."""

    parts: list[Chunk | Quantised]
    """The chunks, in outgoing buffers with those that one copy fills together."""

    alone: dict[int, int]
    """Index of the span of a box with its own message -> its row in the table."""

    @property
    def num_bytes(self) -> int:
        return -(-self.spans[-1].stop // _ALIGNMENT) * _ALIGNMENT if self.spans else 0

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The chunks as tensors."""
        return [chunk.view(buffer) for chunk in self.chunks]

    def places(self, buffer: torch.Tensor) -> list[torch.Tensor | BlockFP8]:
        """The parts as targets of a write."""
        return [
            BlockFP8(part.values.view(buffer), part.scales.view(buffer))
            if isinstance(part, Quantised)
            else part.view(buffer)
            for part in self.parts
        ]


class Round(NamedTuple):
    """What a rank has in flight at one time."""

    outgoing: BufferLayout
    incoming: BufferLayout
    """Messages from peers in `near` have empty spans."""

    near: dict[int, BufferLayout]
    """Index of an incoming span -> a message that this rank reads in its sender's buffer."""

    @property
    def received_bytes(self) -> int:
        return self.incoming.num_bytes + sum(load.num_bytes for load in self.near.values())


class _Message(NamedTuple):
    order: tuple[int, int]
    """(number of the message within its pair of ranks, distance of the ranks): the same on both ranks."""

    peer: int
    outgoing: bool
    side: Side
    boxes: np.ndarray
    """int64 [n, 12]: as in Table, then row, column, number of rows and of columns of the part of the target
    that the chunk holds. No rows: the box is in the chunk of the box before."""

    ends: np.ndarray
    """int64 [n]: the byte at which each box ends, aligned."""

    is_alone: bool
    """Whether this is one large box, which needs no alignment."""

    @property
    def num_bytes(self) -> int:
        return int(self.ends[-1])

    @property
    def sent_bytes(self) -> int:
        if not self.is_alone:
            return self.num_bytes
        _, target, *_, rows, cols = self.boxes[0].tolist()
        return rows * cols * self.side.dtypes[target].itemsize


def rounds(
    rank: int,
    size: int,
    sends: Mapping[int, Side],
    receives: Mapping[int, Side],
    bounds: Bounds,
    near: Collection[int] = (),
    *,
    alone: bool = False,
) -> list[Round]:
    """The rounds of a rank, in the order in which they must be posted. Every round has an operation.

    Args:
        rank, size: rank and size of the group.
        sends, receives: peer -> this rank's side.
        near: peers whose outgoing buffers this rank can map.
        alone: whether large boxes for other peers have messages of their own; equal on all ranks.
    """
    queue = [
        _Message((number, distance), peer, outgoing, side, *message)
        for outgoing, sides in ((True, sends), (False, receives))
        for peer, side in sides.items()
        for distance in [(peer - rank if outgoing else rank - peer) % size]
        for number, message in enumerate(_messages(side, bounds.message_bytes, alone and peer not in near))
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


def _messages(side: Side, message_bytes: int, alone: bool) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(boxes of a message, the byte at which each ends, whether it is one large box), in as few messages as
    the order of boxes allows.

    Raises:
        ValueError: a chunk of FP8 blocks is larger than a message.
    """
    item_bytes = np.array([dtype.itemsize for dtype in side.dtypes], np.int64)
    in_blocks = np.isin(np.arange(len(item_bytes)), list(side.scales))
    boxes = _split_boxes(chunked(side.table.boxes, in_blocks), item_bytes, in_blocks, message_bytes)
    used = _aligned(boxes[:, 10] * boxes[:, 11] * item_bytes[boxes[:, 1]])
    scales = -(-boxes[:, 10:] // BLOCK)
    used += np.where(in_blocks[boxes[:, 1]], _aligned(4 * scales[:, 0] * scales[:, 1]), 0)
    if len(used) and used.max() > message_bytes:
        raise ValueError(
            f"messages of {message_bytes} bytes do not hold {used.max()} bytes of FP8 blocks with their "
            "scales: give more staging"
        )
    is_alone = alone & ~in_blocks[boxes[:, 1]] & (used >= _ALONE_BYTES)
    for box in is_alone.nonzero()[0]:
        yield boxes[box : box + 1], used[box : box + 1], True
    boxes, ends = boxes[~is_alone], np.cumsum(used[~is_alone])
    first = before = 0
    while first < len(boxes):
        stop = int(np.searchsorted(ends, before + message_bytes, side="right"))
        yield boxes[first:stop], ends[first:stop] - before, False
        first, before = stop, int(ends[stop - 1])


def _aligned(num_bytes: np.ndarray) -> np.ndarray:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def chunked(boxes: np.ndarray, in_blocks: np.ndarray) -> np.ndarray:
    """Boxes with the part of the target that their chunk holds, as in _Message.boxes.

    A chunk holds its box. Where boxes meet within a block, one chunk holds them all, so that the sender has
    the whole block.

    Args:
        boxes: int64 [n, 8].
        in_blocks: bool, by target.
    """
    found = np.concatenate([boxes, boxes[:, 4:]], 1)
    if not in_blocks[boxes[:, 1]].any():
        return found
    found = found[np.lexsort((found[:, 4], found[:, 5], found[:, 1]))]
    follows = in_blocks[found[:, 1]] & (found[:, 4] % BLOCK > 0)
    number = np.cumsum(~follows) - 1
    heights = np.bincount(number, found[:, 6], minlength=number[-1] + 1).astype(np.int64)
    found[:, 10] = np.where(follows, 0, heights[number])
    return found


def _split_boxes(
    boxes: np.ndarray, item_bytes: np.ndarray, in_blocks: np.ndarray, message_bytes: int
) -> np.ndarray:
    """Split boxes so that each fits into a message: by rows, and by columns if one row is too long. FP8 is
    split between blocks, and not at all where several boxes are in a chunk."""
    size, rows, cols = item_bytes[boxes[:, 1]], boxes[:, 6], boxes[:, 7]
    scaled = in_blocks[boxes[:, 1]]
    unit = np.where(scaled, BLOCK, 1)
    room = np.where(scaled, (message_bytes - 2 * _ALIGNMENT) * BLOCK**2 // (BLOCK**2 + 4), message_bytes)
    col_step = np.clip(cols, 1, np.maximum(1, room // (size * unit)))
    col_step = np.where(col_step < cols, np.maximum(unit, col_step // unit * unit), np.maximum(1, cols))
    row_step = np.maximum(unit, room // (col_step * size) // unit * unit)
    is_shared = boxes[:, 10] != rows
    col_step, row_step = np.where(is_shared, cols, col_step), np.where(is_shared, rows, row_step)
    across = -(-cols // col_step)
    count = across * -(-rows // row_step)
    box = np.repeat(np.arange(len(boxes)), count)
    part = np.arange(len(box)) - (np.cumsum(count) - count)[box]
    row, col = part // across[box] * row_step[box], part % across[box] * col_step[box]
    parts = boxes[box]
    parts[:, 2:6] += np.stack([row, col, row, col], axis=1)
    parts[:, 6] = np.minimum(row_step[box], rows[box] - row)
    parts[:, 7] = np.minimum(col_step[box], cols[box] - col)
    parts[:, 8:] = np.where(is_shared[box, None], parts[:, 8:], parts[:, 4:8])
    return parts


def _rounds(queue: Sequence[_Message], round_bytes: int) -> Iterator[list[_Message]]:
    """Split the queue where a buffer is full.

    What a rank sends and receives with equal order stays in one round. Otherwise all ranks of a ring would
    wait for their sends while each has its receive in the next round.
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


def _load(messages: Sequence[_Message], *, outgoing: bool, near: Collection[int] = ()) -> BufferLayout:
    spans: list[Span] = []
    parts: list[Chunk | Quantised] = []
    rows: list[tuple[int, ...]] = []
    names: dict[Any, int] = {}
    alone: dict[int, int] = {}
    start = 0
    for message in messages:
        if message.peer in near:
            spans.append(Span(message.peer, start, start))
            continue
        begins = [0, *message.ends[:-1].tolist()]
        for begin, box in zip(begins, message.boxes.tolist(), strict=True):
            if box[10]:
                part = _part(message.side, box, start + begin)
                parts += [part] if outgoing or isinstance(part, Chunk) else part
            if outgoing:
                rows.append(_outgoing(message.side.table, box, names, parts))
        if message.is_alone:
            alone[len(spans)] = len(rows if outgoing else parts) - 1
        spans.append(Span(message.peer, start, start + message.sent_bytes))
        start += message.num_bytes
    chunks = [one for part in parts for one in (part if isinstance(part, Quantised) else (part,))]
    if outgoing:
        staged = [part.values.target if isinstance(part, Quantised) else part.target for part in parts]
        sources, targets = list(names), staged
    else:
        rows = [_incoming(chunk, names, number) for number, chunk in enumerate(chunks)]
        sources, targets = [chunk.target[2] for chunk in chunks], list(names)
    table = Table(sources, targets, np.array(rows, np.int64).reshape(-1, 8))
    return BufferLayout(spans, chunks, table, parts, alone)


def _part(side: Side, box: Sequence[int], start: int) -> Chunk | Quantised:
    """The chunk that begins with a box."""
    target, (row, col, rows, cols) = box[1], box[8:]
    chunk = Chunk(start, side.dtypes[target], (rows, cols), side.table.targets[target], (row, col))
    if target not in side.scales:
        return chunk
    after = start + -(-rows * cols // _ALIGNMENT) * _ALIGNMENT
    blocks, place = (num_blocks(rows), num_blocks(cols)), (row // BLOCK, col // BLOCK)
    return Quantised(chunk, Chunk(after, torch.float32, blocks, side.scales[target], place))


def _outgoing(
    table: Table, box: Sequence[int], names: dict[str, int], parts: Sequence[Chunk | Quantised]
) -> tuple[int, ...]:
    """Table row that packs a source box into the last part."""
    source, _, row, col, to_row, to_col, rows, cols, *_ = box
    at = parts[-1].values.at if isinstance(parts[-1], Quantised) else parts[-1].at
    number = names.setdefault(table.sources[source], len(names))
    return number, len(parts) - 1, row, col, to_row - at[0], to_col - at[1], rows, cols


def _incoming(chunk: Chunk, names: dict[Target, int], number: int) -> tuple[int, ...]:
    """Table row that unpacks a chunk into its target."""
    return number, names.setdefault(chunk.target, len(names)), 0, 0, *chunk.at, *chunk.shape
