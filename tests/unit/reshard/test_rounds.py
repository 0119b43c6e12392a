"""The schedule of an exchange alone: where boxes are split, and that ranks cannot deadlock."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from exchange_scenarios import Copy, Pattern, least_bytes_alone, patterns
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.reshard import rounds as schedule
from hybridrl.reshard.rounds import Bounds, Side, rounds
from hybridrl.reshard.table import Table

STAGING = st.sampled_from([64, 128, 1024, 4096, 1 << 20])
ALONE = st.sampled_from([0, 1, 100, 400])
PATTERNS = st.integers(2, 7).flatmap(patterns)


def one_box(rows, cols, staging_bytes, dtype=torch.float32):
    """The rounds in which a rank sends one box."""
    side = Side(Table(["x"], [(0, 1, "y")], np.array([(0, 0, 2, 3, 4, 5, rows, cols)], np.int64)), (dtype,))
    return rounds(0, 2, {1: side}, {}, Bounds.of(staging_bytes))


def all_rounds(pattern, staging_bytes, alone_bytes=0):
    """By rank. Boxes of at least `alone_bytes` have messages of their own; 0: none has."""
    bounds, size = Bounds.of(staging_bytes), pattern.size
    with least_bytes_alone(alone_bytes):
        return [rounds(r, size, *pattern.sides(r), bounds, alone=alone_bytes > 0) for r in range(size)]


def operations(round_, rank):
    """(sender, receiver), in the order of posting."""
    sends = [(rank, span.peer) for span in round_.outgoing.spans]
    return sends + [(span.peer, rank) for span in round_.incoming.spans]


def finish(pattern, staging_bytes, alone_bytes=0):
    """Let messages arrive as soon as both ends are posted; returns the ranks whose rounds never end."""
    todo = [
        [operations(round_, rank) for round_ in found]
        for rank, found in enumerate(all_rounds(pattern, staging_bytes, alone_bytes))
    ]
    moved = True
    while moved:
        posted = [Counter(found[0] if found else ()) for found in todo]
        through = {
            pair: min(posted[pair[0]][pair], posted[pair[1]][pair]) for found in posted for pair in found
        }
        moved = any(through.values())
        for found in todo:
            left = dict(through)
            if found:
                found[0] = [pair for pair in found[0] if not take(left, pair)]
                if not found[0]:
                    del found[0]
    return [rank for rank, found in enumerate(todo) if found]


def take(left, pair):
    left[pair] -= 1
    return left[pair] >= 0


@given(PATTERNS, STAGING, ALONE)
def test_nobody_waits_for_ever(pattern, staging_bytes, alone_bytes):
    assert finish(pattern, staging_bytes, alone_bytes) == []


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("most_operations", [2, 3, 1024])
def test_a_ring_that_fills_its_waves_comes_through(monkeypatch, size, most_operations):
    monkeypatch.setattr(schedule, "_MESSAGE_BYTES", 16)
    monkeypatch.setattr(schedule, "_ROUND_OPERATIONS", most_operations)
    ring = tuple(Copy(r, (r + 1) % size, 0, 0, 0, 2, 40, 0, torch.float32) for r in range(size))
    assert finish(Pattern(size, ring), 1 << 20) == []


@pytest.mark.parametrize("size", range(2, 9))
def test_all_to_all_comes_through_with_one_message_in_a_wave(size):
    pairs = [(one, other) for one in range(size) for other in range(size) if one != other]
    pattern = Pattern(size, tuple(Copy(*pair, 0, 0, 0, 1, 4, 0, torch.float32) for pair in pairs))
    assert [len(found) for found in all_rounds(pattern, 64)] == [size - 1] * size
    assert finish(pattern, 64) == []


@given(PATTERNS, STAGING, ALONE)
def test_both_sides_of_a_pair_cut_the_same_messages(pattern, staging_bytes, alone_bytes):
    sent, received = {}, {}
    for rank, found in enumerate(all_rounds(pattern, staging_bytes, alone_bytes)):
        for round_ in found:
            for span in round_.outgoing.spans:
                sent.setdefault((rank, span.peer), []).append(span.stop - span.start)
            for span in round_.incoming.spans:
                received.setdefault((span.peer, rank), []).append(span.stop - span.start)
    assert sent == received


@given(PATTERNS, STAGING, ALONE)
def test_every_element_is_staged_once(pattern, staging_bytes, alone_bytes):
    for rank, found in enumerate(all_rounds(pattern, staging_bytes, alone_bytes)):
        seen = {name: np.zeros(shape, int) for name, shape in pattern.target_shapes(rank).items()}
        for round_ in found:
            for chunk in round_.incoming.chunks:
                (row, col), (rows, cols) = chunk.at, chunk.shape
                seen[chunk.target][row : row + rows, col : col + cols] += 1
        for copy, target, row in pattern.places():
            if copy.receiver == rank:
                box = seen[target][row : row + copy.rows, copy.to_col : copy.to_col + copy.cols]
                assert (box == 1).all()
                box[:] = 0
        assert not any(left.any() for left in seen.values())


@given(PATTERNS, STAGING, ALONE)
def test_loads_keep_their_bounds(pattern, staging_bytes, alone_bytes):
    for found in all_rounds(pattern, staging_bytes, alone_bytes):
        for load in (load for round_ in found for load in (round_.outgoing, round_.incoming)):
            ends = [
                (chunk.start, chunk.start + np.prod(chunk.shape) * chunk.dtype.itemsize)
                for chunk in load.chunks
            ]
            assert all(start % 16 == 0 for start, _ in ends)
            assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
            assert max((stop for _, stop in ends), default=0) <= load.num_bytes
            assert load.num_bytes <= staging_bytes // 4


@pytest.mark.parametrize(
    "rows, cols, shapes",
    [
        (4, 16, [(4, 16)]),
        (9, 16, [(4, 16), (4, 16), (1, 16)]),
        (1, 100, [(1, 64), (1, 36)]),
        (2, 100, [(1, 64), (1, 36), (1, 64), (1, 36)]),
    ],
)
def test_a_box_is_cut_by_rows_and_by_columns_only_if_a_row_does_not_fit(rows, cols, shapes):
    chunks = [chunk for round_ in one_box(rows, cols, 1024) for chunk in round_.outgoing.chunks]
    assert [chunk.shape for chunk in chunks] == shapes
    assert chunks[0].at == (4, 5)
    area = {(r, c) for p in chunks for r in range(p.at[0], p.at[0] + p.shape[0]) for c in [p.at[1]]}
    assert len(area) == rows * len({p.at[1] for p in chunks})


def test_a_wave_has_a_bounded_number_of_operations(monkeypatch):
    monkeypatch.setattr(schedule, "_MESSAGE_BYTES", 16)
    found = one_box(3000, 4, 1 << 20)
    assert [len(round_.outgoing.spans) for round_ in found] == [750] * 4
    monkeypatch.setattr(schedule, "_ROUNDS", 1)
    assert [len(round_.outgoing.spans) for round_ in one_box(3000, 4, 1 << 20)] == [1024, 1024, 952]


def test_an_empty_box_is_no_message():
    assert one_box(0, 4, 1024) == one_box(4, 0, 1024) == []


def test_staging_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="63 bytes holds no message: give at least 64"):
        Bounds.of(63)


@pytest.mark.parametrize("staging_bytes", [1 << 17, 1 << 18, 1 << 20])
def test_fp8_is_split_between_blocks_and_sent_with_its_scales(staging_bytes):
    """300 x 384 at row 128, column 256, in messages of a whole number of blocks."""
    name, of_scales = (0, 1, "y"), (0, 1, "y_scale_inv")
    table = Table(["x"], [name], np.array([(0, 0, 2, 3, 128, 256, 300, 384)], np.int64))
    side = Side(table, (torch.float8_e4m3fn,), {0: of_scales})
    covered = {name: np.zeros((428, 640), int), of_scales: np.zeros((4, 5), int)}
    for round_ in rounds(0, 2, {1: side}, {}, Bounds.of(staging_bytes)):
        assert max(span.stop - span.start for span in round_.outgoing.spans) <= staging_bytes // 4
        buffer = torch.empty(round_.outgoing.num_bytes, dtype=torch.uint8)
        assert all(type(place).__name__ == "BlockFP8" for place in round_.outgoing.places(buffer))
        for chunk in round_.outgoing.chunks:
            (row, col), (rows, cols) = chunk.at, chunk.shape
            assert chunk.target != name or (row % 128, col % 128) == (0, 0)
            covered[chunk.target][row : row + rows, col : col + cols] += 1
    assert (covered[name][128:428, 256:] == 1).all() and covered[name].sum() == 300 * 384
    assert (covered[of_scales][1:4, 2:] == 1).all() and covered[of_scales].sum() == 9


def test_a_message_that_holds_no_block_is_refused():
    table = Table(["x"], [(0, 1, "y")], np.array([(0, 0, 0, 0, 0, 0, 128, 128)], np.int64))
    side = Side(table, (torch.float8_e4m3fn,), {0: (0, 1, "y_scale_inv")})
    with pytest.raises(ValueError, match="do not hold 16400 bytes of FP8 blocks"):
        rounds(0, 2, {1: side}, {}, Bounds.of(1 << 15))
