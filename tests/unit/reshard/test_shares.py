"""Who sends to whom: demands are complete, nearest holders come first, loads are even, both sides agree."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.reshard.shares import Part, Shares


@st.composite
def cases(draw):
    """(devices of holders, devices of demands, sizes, devices of a node or None)"""
    devices = st.integers(0, 11)
    holders = draw(st.lists(devices, min_size=1, max_size=8))
    demands = draw(st.lists(st.tuples(devices, st.integers(1, 5)), min_size=1, max_size=12))
    node_size = draw(st.sampled_from([None, 1, 2, 4, 16]))
    return sorted(holders), [d for d, _ in demands], [s for _, s in demands], node_size


def shares(case):
    holders, demands, sizes, node_size = case
    return Shares(np.array(holders), np.array(demands), np.array(sizes), node_size)


def served(case):
    """(demand, holder) -> the part, as the demand sees it."""
    found = {}
    for demand in range(len(case[1])):
        for holder, part in shares(case).of_demand(demand):
            found[demand, holder] = (Fraction(part.start, part.of), Fraction(part.stop, part.of))
    return found


@given(cases())
def test_every_demand_is_served_once_from_end_to_end(case):
    for demand in range(len(case[1])):
        flat_ranges = sorted(s for (d, _), s in served(case).items() if d == demand)
        assert flat_ranges[0][0] == 0 and flat_ranges[-1][1] == 1
        assert all(a[1] == b[0] and a[0] < a[1] for a, b in zip(flat_ranges, flat_ranges[1:], strict=False))


@given(cases())
def test_holders_and_demands_see_the_same(case):
    seen = {
        (demand, holder): (Fraction(part.start, part.of), Fraction(part.stop, part.of))
        for holder in range(len(case[0]))
        for demand, part in shares(case).of_holder(holder)
    }
    assert seen == served(case)


@given(cases())
def test_the_nearest_serve(case):
    holders, demands, _, node_size = case
    for demand, holder in served(case):
        device, at = demands[demand], holders[holder]
        if node_size is not None and device in holders:
            assert at == device
        elif node_size is not None and device // node_size in {h // node_size for h in holders}:
            assert at // node_size == device // node_size


@given(cases())
def test_loads_are_even_where_there_is_a_choice(case):
    """On a node the same for all; those who also serve other nodes end at one level, the rest above it."""
    holders, demands, sizes, node_size = case
    near, far = [Fraction(0)] * len(holders), [Fraction(0)] * len(holders)
    for (demand, holder), (start, stop) in served(case).items():
        if node_size is None or holders[holder] // node_size != demands[demand] // node_size:
            far[holder] += (stop - start) * sizes[demand]
        elif demands[demand] not in holders:
            near[holder] += (stop - start) * sizes[demand]
    if node_size is not None:
        nodes = [device // node_size for device in holders]
        assert all(
            len({load for load, n in zip(near, nodes, strict=True) if n == node}) == 1 for node in nodes
        )
    if any(far):
        level = {a + b for a, b in zip(near, far, strict=True) if b}
        assert len(level) == 1
        assert all(a >= max(level) for a, b in zip(near, far, strict=True) if not b)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 40))
def test_parts_of_a_demand_tile_any_length(lengths, rows):
    total, start, at = sum(lengths), 0, 0
    for length in lengths:
        first, last = Part(start, start + length, total).bounds(rows)
        assert first == at
        start, at = start + length, last
    assert at == rows


@given(cases(), st.data())
def test_a_node_gets_bytes_once_and_passes_them_on(case, data):
    holders, demands, _, node_size = case
    alike = [data.draw(st.integers(0, 1)) for _ in demands]
    size_T = np.array(alike) + 1
    once = Shares(np.array(holders), np.array(demands), size_T, node_size or 16, np.array(alike))
    crossed = {}
    for demand, device in enumerate(demands):
        own = [part for _, part in once.of_demand(demand)]
        given_to = [part for _, part in once.forwarded_to(demand)]
        flat_ranges = sorted((Fraction(p.start, p.of), Fraction(p.stop, p.of)) for p in own + given_to)
        assert flat_ranges[0][0] == 0 and flat_ranges[-1][1] == 1
        assert all(a[1] == b[0] for a, b in zip(flat_ranges, flat_ranges[1:], strict=False))
        for other, part in once.forwarded_to(demand):
            assert (demand, part) in list(once.passed_on(other))
        node = device // (node_size or 16)
        if node not in {h // (node_size or 16) for h in holders}:
            got = sum(Fraction(p.stop - p.start, p.of) for p in own)
            crossed[node, alike[demand]] = crossed.get((node, alike[demand]), 0) + got
    assert all(share == 1 for share in crossed.values())
