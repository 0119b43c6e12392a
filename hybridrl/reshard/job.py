"""The input of the planner (Job) and its output (Transfer), as pure data."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

from hybridrl.layout.base import Layout
from hybridrl.layout.blocks import FP8_BYTES
from hybridrl.reshard.topology import Topology

_RULES = 4
"""Version of the planning rules. It is part of the digest and changes with any rule of who copies what."""


class CopyBox(NamedTuple):
    """One rectangle: (row, column) in the source and in the target tensor. A vector is one row.

    Rows count from the first row of the expert, also in a tensor that holds several experts.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    shape: tuple[int, int]


class Stack(NamedTuple):
    """Position of expert e: row (e - first) * step of one tensor; if step is 0, tensor number e - first."""

    first: int
    step: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a source rank copies into one target tensor, on every layer of `layers` and for every expert.

    In tensor names, * stands for the layer and # for the expert.
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
    """(target, target rank) whose tensor the bytes are read from, after all transfers without `via` are done.

    The source rank sits on the device of that target rank. None: the bytes come from the source rank itself.
    """

    fp8: bool = False
    """Whether the target tensor is quantised in blocks. Every block comes whole from one source rank."""

    @property
    def elements(self) -> int:
        one = sum(box.shape[0] * box.shape[1] for box in self.boxes)
        return one * len(self.layers) * len(self.experts)

    def num_bytes(self, element_bytes: int) -> float:
        """Bytes in the target, where elements that are not quantised have `element_bytes`."""
        return self.elements * (FP8_BYTES if self.fp8 else element_bytes)


@dataclass(frozen=True)
class Job:
    """A source layout, the target layouts, and the rules of the plan."""

    source: Layout
    targets: tuple[Layout, ...]
    topology: Topology | None = None
    """None: all ranks are equally near."""

    lost: frozenset[int] = field(default=frozenset())
    """Source ranks that have died; replicas send in their place."""

    once_per_node: bool = False
    """Bytes that several ranks of a node need from other nodes reach the node once and are forwarded."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the job. Two ranks have the same plan if and only if their digests are equal."""
        kinds = {layout: i for i, layout in enumerate(dict.fromkeys((self.source, *self.targets)))}
        layouts = [[type(layout).__name__, asdict(layout)] for layout in kinds]
        targets = [kinds[layout] for layout in self.targets]
        places = self.topology and asdict(self.topology)
        parts = [_RULES, layouts, targets, places, sorted(self.lost), self.once_per_node]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).hexdigest()
