"""What there is to plan between, and what a plan is made of: data alone."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

from hybridrl.layout.base import Layout
from hybridrl.reshard.topology import Topology

_RULES = 2
"""Part of the digest: it changes with any rule of who copies what."""


class CopyBox(NamedTuple):
    """One rectangle: (row, column) in the source and in the target tensor. A vector is one row.

    Rows are those of the expert: what lies before it in a tensor of several experts is not counted.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    shape: tuple[int, int]


class Stack(NamedTuple):
    """Where a tensor keeps expert e: from row (e - first) * step, or if step is 0, in tensor e - first."""

    first: int
    step: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a source rank copies into a target tensor on every layer of `layers` and for every expert.

    In names, * is the layer and # the expert.
    """

    param: str
    source_rank: int
    source_tensor: str
    target: int
    """Index into the target layouts."""

    target_rank: int
    target_tensor: str
    layers: range
    boxes: tuple[CopyBox, ...]
    experts: range = range(1)
    source_stack: Stack = Stack(0, 0)
    target_stack: Stack = Stack(0, 0)
    via: tuple[int, int] | None = None
    """(target, its rank) that has the bytes once all transfers without this one's kind are done; the source
    is its tensor, and the source rank sits on its device. None: the source is the source rank's own."""

    @property
    def elements(self) -> int:
        one = sum(box.shape[0] * box.shape[1] for box in self.boxes)
        return one * len(self.layers) * len(self.experts)


@dataclass(frozen=True)
class Job:
    """What to plan between."""

    source: Layout
    targets: tuple[Layout, ...]
    topology: Topology | None = None
    """None: everybody is equally near."""

    lost: frozenset[int] = field(default=frozenset())
    """Source ranks that are gone: replicas take their place."""

    once_per_node: bool = False
    """Bytes that several ranks of a node need from other nodes cross once, and are then passed on."""

    @cached_property
    def digest(self) -> str:
        """Equal on two ranks if and only if they plan the same."""
        kinds = {layout: i for i, layout in enumerate(dict.fromkeys((self.source, *self.targets)))}
        layouts = [[type(layout).__name__, asdict(layout)] for layout in kinds]
        targets = [kinds[layout] for layout in self.targets]
        places = self.topology and asdict(self.topology)
        parts = [_RULES, layouts, targets, places, sorted(self.lost), self.once_per_node]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).hexdigest()
