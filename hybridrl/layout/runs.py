"""Maps one dimension of a canonical parameter to the same dimension of a holder's tensor, as runs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """`length` contiguous indices that start at `at` in the parameter and at `local` in a tensor."""

    at: int
    length: int
    local: int


class Span(NamedTuple):
    """Contiguous indices that two holders share, which start at `at` in the parameter.

    They start at `first` and `second` in the two tensors.
    """

    at: int
    length: int
    first: int
    second: int


Runs = tuple[Run, ...]
"""Runs that are sorted by `at`, do not overlap, and are not empty."""


def whole(length: int) -> Runs:
    """The identity map of a dimension."""
    return (Run(0, length, 0),)


def join(runs: Iterable[Run]) -> Runs:
    """The same map, sorted, with runs merged that are neighbours in both the parameter and the tensor."""
    joined: list[Run] = []
    for run in sorted(runs):
        last = joined[-1] if joined else None
        if last and last.at + last.length == run.at and last.local + last.length == run.local:
            joined[-1] = last._replace(length=last.length + run.length)
        elif run.length:
            joined.append(run)
    return tuple(joined)


def window(order: Iterable[tuple[int, int]], start: int, stop: int) -> Runs:
    """Map of positions [start, stop) of a tensor that has the parts (at, length) of `order` end to end."""
    found, position = [], 0
    for at, length in order:
        first, last = max(start, position), min(stop, position + length)
        if first < last:
            found.append(Run(at + first - position, last - first, first - start))
        position += length
    return join(found)


def overlap(a: Sequence[Run], b: Sequence[Run]) -> list[Span]:
    """What two holders share, in the parameter's order, found in one pass over both."""
    spans, i, j, num_a, num_b = [], 0, 0, len(a), len(b)
    while i < num_a and j < num_b:
        (at_a, length_a, local_a), (at_b, length_b, local_b) = a[i], b[j]
        end_a, end_b = at_a + length_a, at_b + length_b
        at, end = at_a if at_a > at_b else at_b, end_a if end_a < end_b else end_b
        if at < end:
            spans.append(Span(at, end - at, local_a + at - at_a, local_b + at - at_b))
        i, j = i + (end_a <= end_b), j + (end_b <= end_a)
    return spans


def size(runs: Iterable[Run]) -> int:
    """Number of indices covered."""
    return sum(run.length for run in runs)
