"""Which of several holders of the same bytes serves whom: nearest first, and evenly.

Demands that the same holders can serve form a line as long as their sizes, and each holder serves a stretch
of it. On a node that has holders these share the node's line equally. All share the line of the nodes that
have none, and those that serve their own node less take more of it.

Several demands of a node may be for the same bytes, which no holder on it has. Then each gets an equal part
of them from other nodes, and passes it on.
"""

from collections.abc import Iterator
from itertools import groupby
from math import lcm
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """The stretch [start / of, stop / of) of a demand."""

    start: int
    stop: int
    of: int

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.of

    def within(self, outer: "Part") -> "Part":
        """This stretch of another one, as a stretch of the whole demand."""
        start = outer.start * self.of + (outer.stop - outer.start) * self.start
        return Part(start, start + (outer.stop - outer.start) * (self.stop - self.start), outer.of * self.of)

    def cut(self, length: int) -> tuple[int, int]:
        """The same stretch of `length` things; parts that tile a demand tile them."""
        return length * self.start // self.of, length * self.stop // self.of


class Shares:
    """Shape letters: T demands, H holders. All int64."""

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
            size_T: at least 1.
            node_size: devices of a node; None: everybody is equally near.
            alike_T: equal for demands of the same bytes, which a node gets once; None: each gets its own.
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
        self._line_T = np.where(far, _FAR, node_T)
        if node_size is not None:
            self._serve_the_own_device(holder_device_H[order_H], device_T)
        self._lines: dict[int, _Line] = {}
        self._served: dict[int, list[tuple[int, Part]]] = {}
        self._circles: dict[int, list[int]] = {}
        """Demand -> all that are for the same bytes on its node, if there are several."""

        if alike_T is not None:
            self._share_among_the_node(np.flatnonzero(far), node_T, alike_T)

    def _share_among_the_node(self, far: np.ndarray, node_T: np.ndarray, alike_T: np.ndarray) -> None:
        circles: dict[tuple[int, int], list[int]] = {}
        for demand, node, alike in zip(
            far.tolist(), node_T[far].tolist(), alike_T[far].tolist(), strict=True
        ):
            circles.setdefault((node, alike), []).append(demand)
        several = [circle for circle in circles.values() if len(circle) > 1]
        self._circles = {demand: circle for circle in several for demand in circle}
        unit = lcm(*(len(circle) for circle in several))
        self._size_T = self._size_T * unit
        for demand, circle in self._circles.items():
            self._size_T[demand] //= len(circle)

    def passed_on(self, demand: int) -> Iterator[tuple[int, Part]]:
        """(another demand of the node, what it gets from this one)"""
        circle = self._circles.get(demand, ())
        yield from ((other, self._own(demand)) for other in circle if other != demand)

    def given(self, demand: int) -> Iterator[tuple[int, Part]]:
        """(another demand of the node, what this one gets from it)"""
        circle = self._circles.get(demand, ())
        yield from ((other, self._own(other)) for other in circle if other != demand)

    def _own(self, demand: int) -> Part:
        """What a demand gets from holders."""
        circle = self._circles.get(demand, [demand])
        return Part(circle.index(demand), circle.index(demand) + 1, len(circle))

    def _serve_the_own_device(self, device_H: np.ndarray, device_T: np.ndarray) -> None:
        place_T = device_H.searchsorted(device_T)
        place_T[place_T == len(device_H)] = 0
        here = device_H[place_T] == device_T
        self._first_T[here], self._count_T[here], self._line_T[here] = place_T[here], 1, _HERE

    def of_demand(self, demand: int) -> list[tuple[int, Part]]:
        """(holder, what it serves)"""
        if demand not in self._served:
            self._served[demand] = list(self._serve(demand))
        return self._served[demand]

    def _serve(self, demand: int) -> Iterator[tuple[int, Part]]:
        first = int(self._first_T[demand])
        if self._line_T[demand] == _HERE:
            yield int(self._order_H[first]), _WHOLE
            return
        line = self._line(int(self._line_T[demand]))
        at = int(np.searchsorted(line.demands, demand))
        begin, end = int(line.starts[at]), int(line.starts[at] + line.sizes[at])
        for i in range(np.searchsorted(line.edges, begin, "right") - 1, np.searchsorted(line.edges, end)):
            if line.edges[i] < line.edges[i + 1]:
                yield int(self._order_H[first + i]), line.part(at, i).within(self._own(demand))

    def of_holder(self, holder: int) -> Iterator[tuple[int, Part]]:
        """(demand, what of it is served)"""
        place = int(np.flatnonzero(self._order_H == holder)[0])
        served_T = (self._first_T <= place) & (place < self._first_T + self._count_T)
        for name in sorted(set(self._line_T[served_T].tolist())):
            if name == _HERE:
                here_T = served_T & (self._line_T == _HERE)
                yield from ((demand, _WHOLE) for demand in np.flatnonzero(here_T).tolist())
            else:
                line = self._line(name)
                index = place - int(self._first_T[line.demands[0]])
                for at in line.met(index):
                    demand = int(line.demands[at])
                    yield demand, line.part(at, index).within(self._own(demand))

    def _line(self, name: int) -> "_Line":
        if name not in self._lines:
            demands = np.flatnonzero(self._line_T == name)
            sizes = self._size_T[demands]
            length, count = int(sizes.sum()), int(self._count_T[demands[0]])
            if name == _FAR:
                edges, scale = self._level(length)
            else:
                edges, scale = np.arange(count + 1) * length, count
            self._lines[name] = _Line(demands, (np.cumsum(sizes) - sizes) * scale, sizes * scale, edges)
        return self._lines[name]

    def _level(self, length: int) -> tuple[np.ndarray, int]:
        """Edges of the holders' stretches on the far line, and its scale, that make all loads alike.

        Holders that serve their own node more than that take nothing.
        """
        nodes = [(node, len(list(same))) for node, same in groupby(self._node_H.tolist())]
        near_T = self._line_T >= 0
        lengths = np.bincount(self._line_T[near_T], self._size_T[near_T], minlength=nodes[-1][0] + 1)
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
"""Names of lines beside those of the nodes: nobody on the node holds it; the device itself does."""

_WHOLE = Part(0, 1, 1)


class _Line(NamedTuple):
    """Demands that the same holders serve, end to end, in units that every edge is a whole number of."""

    demands: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    edges: np.ndarray
    """Holder i serves from edge i to edge i + 1."""

    def met(self, index: int) -> list[int]:
        """Places of the demands that a holder serves."""
        begin, end = self.edges[index], self.edges[index + 1]
        return np.flatnonzero((self.starts < end) & (self.starts + self.sizes > begin)).tolist()

    def part(self, at: int, index: int) -> Part:
        """What a holder serves of the demand at a place."""
        start, size = int(self.starts[at]), int(self.sizes[at])
        begin, end = int(self.edges[index]), int(self.edges[index + 1])
        return Part(max(start, begin) - start, min(start + size, end) - start, size)
