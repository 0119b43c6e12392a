"""Chooses which of several replicas sends what to whom: the nearest first, with even loads.

A holder is a rank that has the bytes, a demand is a target rank that needs them. Demands that the same
holders can serve are laid end to end on an interval, and each holder sends one contiguous part of it. The
holders on a node split that node's interval equally. All holders split the interval of the nodes without a
holder; those that send less on their own node take more of it.

If several demands on a node need the same bytes and no holder is on the node, each demand can get an equal
part from other nodes and forward it to the others.
"""

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """The part [start / of, stop / of) of a demand."""

    start: int
    stop: int
    of: int

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.of

    def within(self, outer: "Part") -> "Part":
        """This part of the part `outer`, as a part of the whole demand."""
        start = outer.start * self.of + (outer.stop - outer.start) * self.start
        return Part(start, start + (outer.stop - outer.start) * (self.stop - self.start), outer.of * self.of)

    def bounds(self, length: int) -> tuple[int, int]:
        """(start, stop) of this part among `length` items. Parts that tile a demand tile the items."""
        return length * self.start // self.of, length * self.stop // self.of


class Shares:
    """Who sends which part of each demand. Shape letters: T demands, H holders; all arrays are int64."""

    def __init__(
        self,
        holder_device_H: np.ndarray,
        device_T: np.ndarray,
        size_T: np.ndarray,
        node_size: int | None,
        alike_T: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            size_T: elements of each demand, at least 1.
            node_size: devices per node; None: all devices are equally near.
            alike_T: demands for the same bytes have equal numbers, and a node gets them once. None:
                every demand receives its own.
        """
        node_H = np.zeros_like(holder_device_H) if node_size is None else holder_device_H // node_size
        node_T = np.zeros_like(device_T) if node_size is None else device_T // node_size
        order_H = holder_device_H.argsort(kind="stable")
        self._node_H = node_H = node_H[order_H]
        first_T = node_H.searchsorted(node_T, "left")
        count_T = node_H.searchsorted(node_T, "right") - first_T
        far = count_T == 0
        first_T[far], count_T[far] = 0, len(order_H)
        self._order_H, self._first_T, self._count_T, self._size_T = order_H, first_T, count_T, size_T
        self._interval_T = np.where(far, _FAR, node_T)
        if node_size is not None:
            self._serve_own_device(holder_device_H[order_H], device_T)
        self._intervals: dict[int, _Interval] = {}
        self._served: dict[int, list[tuple[int, Part]]] = {}
        self._members = np.empty(0, np.int64)
        """Demands that no holder's node serves, those on one node for the same bytes next to each other."""

        self._group_T = np.zeros((2, len(size_T)), np.int64)
        """(first, number) of a demand's group among the members; 0, 0: it is in none."""

        if alike_T is not None:
            self._split_within_nodes(np.flatnonzero(far), node_T, alike_T)

    def _split_within_nodes(self, far: np.ndarray, node_T: np.ndarray, alike_T: np.ndarray) -> None:
        self._members = members = far[np.lexsort((alike_T[far], node_T[far]))]
        keys = np.stack([node_T[members], alike_T[members]])
        firsts = np.flatnonzero(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))[: len(members)])
        counts = np.diff(np.append(firsts, len(members)))
        self._group_T[:, members] = np.repeat([firsts, counts], counts, axis=1)
        self._size_T = self._size_T * lcm(*np.unique(counts).tolist())
        self._size_T[members] //= self._group_T[1, members]

    def _group(self, demand: int) -> list[int]:
        """All demands on its node for the same bytes."""
        first, count = self._group_T[:, demand].tolist()
        return self._members[first : first + count].tolist() if count else [demand]

    def passed_on(self, demand: int) -> Iterator[tuple[int, Part]]:
        """(other demand on the node, the part that this demand forwards to it)"""
        yield from ((other, self._own(demand)) for other in self._group(demand) if other != demand)

    def forwarded_to(self, demand: int) -> Iterator[tuple[int, Part]]:
        """(other demand on the node, the part that it forwards to this demand)"""
        yield from ((other, self._own(other)) for other in self._group(demand) if other != demand)

    def _own(self, demand: int) -> Part:
        """The part of a demand that comes from holders."""
        group = self._group(demand)
        return Part(group.index(demand), group.index(demand) + 1, len(group))

    def _serve_own_device(self, device_H: np.ndarray, device_T: np.ndarray) -> None:
        place_T = device_H.searchsorted(device_T)
        place_T[place_T == len(device_H)] = 0
        here = device_H[place_T] == device_T
        self._first_T[here], self._count_T[here], self._interval_T[here] = place_T[here], 1, _HERE

    def of_demand(self, demand: int) -> list[tuple[int, Part]]:
        """(holder, the part that it sends) of a demand."""
        if demand not in self._served:
            self._served[demand] = list(self._serve(demand))
        return self._served[demand]

    def _serve(self, demand: int) -> Iterator[tuple[int, Part]]:
        first = int(self._first_T[demand])
        if self._interval_T[demand] == _HERE:
            yield int(self._order_H[first]), _WHOLE
            return
        interval = self._interval(int(self._interval_T[demand]))
        at = int(np.searchsorted(interval.demands, demand))
        begin, end = int(interval.starts[at]), int(interval.starts[at] + interval.sizes[at])
        for i in range(
            np.searchsorted(interval.edges, begin, "right") - 1, np.searchsorted(interval.edges, end)
        ):
            if interval.edges[i] < interval.edges[i + 1]:
                yield int(self._order_H[first + i]), interval.part(at, i).within(self._own(demand))

    def of_holder(self, holder: int) -> Iterator[tuple[int, Part]]:
        """(demand, the part that the holder sends) of a holder."""
        place = int(np.flatnonzero(self._order_H == holder)[0])
        served_T = (self._first_T <= place) & (place < self._first_T + self._count_T)
        for name in sorted(set(self._interval_T[served_T].tolist())):
            if name == _HERE:
                here_T = served_T & (self._interval_T == _HERE)
                yield from ((demand, _WHOLE) for demand in np.flatnonzero(here_T).tolist())
            else:
                interval = self._interval(name)
                index = place - int(self._first_T[interval.demands[0]])
                for at in interval.served_by(index):
                    demand = int(interval.demands[at])
                    yield demand, interval.part(at, index).within(self._own(demand))

    def _interval(self, name: int) -> "_Interval":
        if name not in self._intervals:
            demands = np.flatnonzero(self._interval_T == name)
            sizes = self._size_T[demands]
            length, count = int(sizes.sum()), int(self._count_T[demands[0]])
            if name == _FAR:
                edges, scale = self._balanced_edges(length)
            else:
                edges, scale = np.arange(count + 1) * length, count
            self._intervals[name] = _Interval(
                demands, (np.cumsum(sizes) - sizes) * scale, sizes * scale, edges
            )
        return self._intervals[name]

    def _balanced_edges(self, length: int) -> tuple[np.ndarray, int]:
        """(edges of the holders' parts of the far interval, its scale) that make all loads equal.

        Holders whose load on their own node is above that level take nothing.
        """
        firsts = np.flatnonzero(np.append(True, self._node_H[1:] != self._node_H[:-1]))
        counts = np.diff(np.append(firsts, len(self._node_H))).tolist()
        nodes = list(zip(self._node_H[firsts].tolist(), counts, strict=True))
        near_T = self._interval_T >= 0
        lengths = np.bincount(self._interval_T[near_T], self._size_T[near_T], minlength=nodes[-1][0] + 1)
        unit = lcm(*(count for node, count in nodes if lengths[node]))
        loads = [(int(lengths[node]) * unit // count, count) for node, count in nodes]
        held = length * unit
        active = 0
        for load, count in sorted(loads):
            if held <= active * load:
                break
            held, active = held + load * count, active + count
        takes = [max(held - active * load, 0) for load, _ in loads]
        take_H = np.repeat(takes, [count for _, count in nodes])
        return np.concatenate([[0], take_H.cumsum()]), unit * active


_FAR, _HERE = -1, -2
"""Names of two intervals that belong to no node: no holder is on the node; the device itself is a holder."""

_WHOLE = Part(0, 1, 1)


class _Interval(NamedTuple):
    """Demands that the same holders serve, laid end to end. Its unit makes every edge a whole number."""

    demands: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    edges: np.ndarray
    """Holder i sends from edge i to edge i + 1."""

    def served_by(self, index: int) -> list[int]:
        """Positions in `demands` of those that a holder serves."""
        begin, end = self.edges[index], self.edges[index + 1]
        return np.flatnonzero((self.starts < end) & (self.starts + self.sizes > begin)).tolist()

    def part(self, at: int, index: int) -> Part:
        """The part of the demand at a position that a holder sends."""
        start, size = int(self.starts[at]), int(self.sizes[at])
        begin, end = int(self.edges[index]), int(self.edges[index + 1])
        return Part(max(start, begin) - start, min(start + size, end) - start, size)
