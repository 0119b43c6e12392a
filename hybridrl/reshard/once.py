"""Splits what target ranks hold, so that two parts have either the same elements or none in common.

A plan with once_per_node sends each such part to a node once. Without the split, ranks that share only some
elements, as two ranks with one key-value head do, would get these twice.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from hybridrl.layout.base import Layout
from hybridrl.layout.runs import Run, Runs, join, overlap
from hybridrl.reshard.cells import split_maps
from hybridrl.reshard.regions import Wanted


def once_each(kinds: Sequence[Layout]) -> Iterator[list[Wanted]]:
    """What each kind of target layout holds, in parts."""
    maps: dict[str, dict[tuple[Runs, Runs], int]] = {}
    for held in chain.from_iterable(layout.holdings for layout in kinds):
        of_param = maps.setdefault(held.param, {})
        of_param.setdefault((_canonical(held.rows), _canonical(held.cols)), len(of_param))
    patches = {param: split_maps(tuple(of_param)) for param, of_param in maps.items()}
    alike: dict[tuple[Runs, Runs, bool], int] = {}
    same: dict[tuple[object, ...], int] = {}
    for kind, layout in enumerate(kinds):
        found: list[Wanted] = []
        for held in layout.holdings:
            own = maps[held.param][_canonical(held.rows), _canonical(held.cols)]
            for number, (rows, cols, owners) in enumerate(patches[held.param]):
                if own in owners:
                    part = held._replace(rows=_within(held.rows, rows), cols=_within(held.cols, cols))
                    elements = (held.param, held.layers, held.experts, held.fp8, number)
                    found.append(
                        Wanted(
                            kind,
                            len(found),
                            alike.setdefault((part.rows, part.cols, part.fp8), len(alike)),
                            part,
                            same.setdefault(elements, len(same)),
                        )
                    )
        yield found


def _canonical(runs: Runs) -> Runs:
    """The same indices of the parameter, wherever they are in a tensor."""
    return join(Run(run.at, run.length, run.at) for run in runs)


def _within(runs: Runs, part: Runs) -> Runs:
    return join(Run(span.at, span.length, span.first) for span in overlap(runs, part))
