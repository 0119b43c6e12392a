"""One dimension of a layout: stretches of a canonical dimension, and where each sits in a holder's tensor."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """`length` neighbours, from `at` in the canonical dimension and from `local` in the holder's."""

    at: int
    length: int
    local: int


class Span(NamedTuple):
    """A stretch that two holders share: where it starts in the canonical dimension and in each of theirs."""

    at: int
    length: int
    first: int
    second: int


Runs = tuple[Run, ...]
"""Sorted by `at`, not overlapping, none empty."""


def whole(length: int) -> Runs:
    """The dimension as it is."""
    return (Run(0, length, 0),)


def join(runs: Iterable[Run]) -> Runs:
    """The same runs, sorted, with neighbours on both sides made one."""
    joined: list[Run] = []
    for run in sorted(runs):
        last = joined[-1] if joined else None
        if last and last.at + last.length == run.at and last.local + last.length == run.local:
            joined[-1] = last._replace(length=last.length + run.length)
        elif run.length:
            joined.append(run)
    return tuple(joined)


def window(order: Iterable[tuple[int, int]], start: int, stop: int) -> Runs:
    """Positions [start, stop) of a storage that keeps the stretches (at, length) of `order` end to end."""
    found, position = [], 0
    for at, length in order:
        first, last = max(start, position), min(stop, position + length)
        if first < last:
            found.append(Run(at + first - position, last - first, first - start))
        position += length
    return join(found)


def overlap(a: Sequence[Run], b: Sequence[Run]) -> list[Span]:
    """What two holders share, in canonical order: one pass over both."""
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
    """Elements covered."""
    return sum(run.length for run in runs)
