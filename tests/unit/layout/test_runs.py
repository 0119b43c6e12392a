"""The algebra of one dimension against arrays of element numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.layout.runs import Run, join, overlap, size, whole, window

FLAT_RANGES = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=8)


def order_of(choices):
    """Some contiguous parts of a dimension, in a shuffled storage order."""
    edges = np.cumsum([0] + [length for length, _ in choices])
    flat_ranges = [(int(at), length) for at, (length, kept) in zip(edges, choices) if kept]
    return flat_ranges[::2] + flat_ranges[1::2]


def stored(order):
    return np.concatenate([np.zeros(0, int)] + [np.arange(at, at + length) for at, length in order])


@given(FLAT_RANGES, st.integers(0, 40), st.integers(0, 40))
def test_a_window_names_the_elements_it_shows(choices, start, length):
    order = order_of(choices)
    storage = stored(order)[start : start + length]
    for run in window(order, start, start + length):
        assert run.length > 0
        assert (storage[run.local : run.local + run.length] == np.arange(run.at, run.at + run.length)).all()
    assert size(window(order, start, start + length)) == len(storage)


@given(FLAT_RANGES, FLAT_RANGES)
def test_overlap_finds_every_common_element_in_both_holders(first, second):
    orders = order_of(first), order_of(second)
    storages = [stored(order) for order in orders]
    runs = [window(order, 0, len(storage)) for order, storage in zip(orders, storages)]
    spans = overlap(*runs)
    common = [at + i for at, length, _, _ in spans for i in range(length)]
    assert common == sorted(set(storages[0]) & set(storages[1]))
    for at, length, first_local, second_local in spans:
        assert storages[0][first_local : first_local + length].tolist() == list(range(at, at + length))
        assert storages[1][second_local : second_local + length].tolist() == list(range(at, at + length))


@given(FLAT_RANGES)
def test_runs_are_sorted_apart_and_as_few_as_possible(choices):
    runs = window(order_of(choices), 0, 1000)
    for a, b in zip(runs, runs[1:]):
        assert a.at + a.length <= b.at
        assert a.at + a.length < b.at or a.local + a.length != b.local


def test_join_fuses_only_neighbours_on_both_sides():
    assert join([Run(2, 2, 2), Run(0, 2, 0)]) == whole(4)
    assert join([Run(0, 2, 5), Run(2, 2, 0)]) == (Run(0, 2, 5), Run(2, 2, 0))
    assert join([Run(0, 0, 0)]) == ()
