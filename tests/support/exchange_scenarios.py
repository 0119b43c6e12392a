"""What the ranks of an exchange do in a test, and what their targets must be after it."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from hypothesis import strategies as st

from hybridrl.errors import SwapError
from hybridrl.reshard import rounds, same_host
from hybridrl.reshard.exchange import Exchange, Side
from hybridrl.reshard.table import Table

SOURCE_SHAPE = (6, 40)
NUM_SOURCES = 3
TARGET_COLS = 40
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Copy(NamedTuple):
    sender: int
    receiver: int
    source: int
    row: int
    col: int
    rows: int
    cols: int
    to_col: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Pattern:
    """Copies; those to one receiver in one dtype lie below one another in one target."""

    size: int
    copies: tuple[Copy, ...]

    def places(self):
        """(copy, target, row in it)"""
        filled = defaultdict(int)
        for copy in self.copies:
            target = (0, copy.receiver, str(copy.dtype))
            yield copy, target, filled[target]
            filled[target] += copy.rows

    def target_shapes(self, rank):
        ends = {target: row + copy.rows for copy, target, row in self.places() if copy.receiver == rank}
        return {target: (rows + 1, TARGET_COLS) for target, rows in ends.items()}

    def sides(self, rank):
        """(sends, receives) of a rank."""
        found = ({}, {})
        for copy, target, row in self.places():
            for side, (me, peer) in enumerate([(copy.sender, copy.receiver), (copy.receiver, copy.sender)]):
                if me == rank:
                    names, dtypes, boxes = found[side].setdefault(peer, ({}, {}, []))
                    dtypes[target] = copy.dtype
                    number = names.setdefault(target, len(names))
                    from_place = (copy.row, copy.col) if side == 0 else (0, 0)
                    source = copy.source if side == 0 else 0
                    boxes.append((source, number, *from_place, row, copy.to_col, copy.rows, copy.cols))
        sources = [str(i) for i in range(NUM_SOURCES)]
        sends, receives = (
            {
                peer: Side(
                    Table(sources, list(names), np.array(boxes, np.int64)),
                    tuple(dtypes[name] for name in names),
                )
                for peer, (names, dtypes, boxes) in side.items()
            }
            for side in found
        )
        return sends, receives

    def sources(self, rank):
        draw = torch.Generator().manual_seed(rank)
        return {str(i): torch.randn(SOURCE_SHAPE, generator=draw) for i in range(NUM_SOURCES)}

    def empty_targets(self, rank):
        dtypes = {str(dtype): dtype for dtype in DTYPES}
        return {
            target: torch.zeros(shape, dtype=dtypes[target[2]])
            for target, shape in self.target_shapes(rank).items()
        }

    def expected(self, rank):
        targets = self.empty_targets(rank)
        for copy, target, row in self.places():
            if copy.receiver == rank:
                values = self.sources(copy.sender)[str(copy.source)]
                box = values[copy.row : copy.row + copy.rows, copy.col : copy.col + copy.cols]
                targets[target][row : row + copy.rows, copy.to_col : copy.to_col + copy.cols] = box
        return targets


@st.composite
def patterns(draw, size, most=12):
    copies = []
    for _ in range(draw(st.integers(0, most))):
        sender = draw(st.integers(0, size - 1))
        receiver = (sender + draw(st.integers(1, size - 1))) % size
        rows = draw(st.integers(1, SOURCE_SHAPE[0]))
        cols = draw(st.sampled_from([SOURCE_SHAPE[1], *range(1, SOURCE_SHAPE[1])]))
        row, col = (
            draw(st.integers(0, SOURCE_SHAPE[0] - rows)),
            draw(st.integers(0, SOURCE_SHAPE[1] - cols)),
        )
        to_col = draw(st.integers(0, TARGET_COLS - cols))
        source, dtype = draw(st.integers(0, NUM_SOURCES - 1)), draw(st.sampled_from(DTYPES))
        copies.append(Copy(sender, receiver, source, row, col, rows, cols, to_col, dtype))
    return Pattern(size, tuple(copies))


def run_pattern(group, pattern, staging_bytes, times=1, machines=1, alone_bytes=1):
    """(targets, what the rank moved)

    Args:
        machines: that the ranks take themselves to be on, dealt out in turn; 0: all carry all in messages.
        alone_bytes: least size of a box with a message of its own.
    """
    rank = dist.get_rank(group)
    targets, moved = pattern.empty_targets(rank), None
    on_host = "memory" if machines else "messages"
    sends, receives = pattern.sides(rank)
    with machine(rank % max(machines, 1)), least_bytes_alone(alone_bytes):
        exchange = Exchange(group, sends, receives, targets, staging_bytes=staging_bytes, on_host=on_host)
    for _ in range(times):
        moved = exchange.run(pattern.sources(rank))
    return targets, moved


@contextmanager
def machine(number):
    """As if this process were on another one."""
    true = same_host._BOOT
    same_host._BOOT = [true, Path("/proc/sys/kernel/ostype")][number]
    try:
        yield
    finally:
        same_host._BOOT = true


@contextmanager
def least_bytes_alone(num_bytes):
    true = rounds._ALONE_BYTES
    rounds._ALONE_BYTES = num_bytes
    try:
        yield
    finally:
        rounds._ALONE_BYTES = true


def disagree(group, patterns):
    """The message of the error, when every rank plans from its own pattern."""
    rank = dist.get_rank(group)
    sends, receives = patterns[rank].sides(rank)
    try:
        Exchange(group, sends, receives, patterns[rank].empty_targets(rank))
    except SwapError as error:
        return str(error)
    return None


def refused(group, pattern):
    """Messages of the errors when a target is missing, has another dtype, and when a source is missing."""
    rank = dist.get_rank(group)
    targets = pattern.empty_targets(rank)
    sends, receives = pattern.sides(rank)
    found = []
    for given in ({}, {name: target.double() for name, target in targets.items()}, targets):
        try:
            Exchange(group, sends, receives, given).run({})
        except SwapError as error:
            found.append(str(error))
    return found


def other_sources(group, pattern):
    """Targets after sources in float32, and after the same ones in bfloat16, which lie elsewhere."""
    rank = dist.get_rank(group)
    targets = pattern.empty_targets(rank)
    sends, receives = pattern.sides(rank)
    exchange = Exchange(group, sends, receives, targets)
    sources, found = pattern.sources(rank), []
    for given in (sources, {name: value.bfloat16() for name, value in sources.items()}):
        exchange.run(given)
        found.append({name: target.clone() for name, target in targets.items()})
    return found


_BUILT = []


def build_all_to_all(group, num_rows, on_host):
    """Rows of 4 KB to every rank, in staging of 1 MB."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    boxes = np.array([(0, 0, 0, 0, 0, 0, num_rows, 1024)], np.int64)
    dtypes = (torch.float32,)
    peers = [peer for peer in range(size) if peer != rank]
    exchange = Exchange(
        group,
        {peer: Side(Table(["x"], [(0, peer, str(rank))], boxes), dtypes) for peer in peers},
        {peer: Side(Table(["x"], [(0, rank, str(peer))], boxes), dtypes) for peer in peers},
        {(0, rank, str(peer)): torch.zeros(num_rows, 1024) for peer in peers},
        staging_bytes=1 << 20,
        on_host=on_host,
    )
    _BUILT.append((exchange, {"x": torch.ones(num_rows, 1024)}))


def run_until_lost(group):
    """Again and again what was built; the message of the error that ends it."""
    exchange, sources = _BUILT[-1]
    try:
        while True:
            exchange.run(sources)
    except SwapError as error:
        return str(error)


def run_sides(group, sides, sources, shapes, dtype):
    """(targets, what the rank moved) of an exchange that the parent planned; everything by rank."""
    rank = dist.get_rank(group)
    targets = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes[rank].items()}
    sends, receives = sides[rank]
    return targets, Exchange(group, sends, receives, targets, staging_bytes=1 << 14).run(sources[rank])
