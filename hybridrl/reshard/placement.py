"""Assigns engine ranks to devices so that most of their bytes are on the device already.

HybridFlow (arXiv:2409.19256, section 5.4) nests generation ranks in training ranks by their numbers, which
needs sizes that divide each other. Here it is a linear assignment problem. Its solution has the same groups
where HybridFlow applies, and it also covers experts, pipeline stages and everything else in a layout.
"""

from dataclasses import replace
from typing import Literal

import lap
import numpy as np

from hybridrl.layout.base import Holding, Layout, common_range
from hybridrl.layout.runs import overlap, size
from hybridrl.reshard.topology import Topology

Scope = Literal["node", "cluster"]


def held_there(source: Layout, target: Layout, *, fp8: bool | None = None) -> np.ndarray:
    """int64 [source ranks, target ranks]: elements that the target rank needs and the source rank holds.

    Args:
        fp8: count only what the target has in FP8, or only what it has not; None: count both.
    """
    found = np.zeros((source.world_size, target.world_size), np.int64)
    wanted = {}
    for held in _of_precision(target, fp8):
        wanted.setdefault(held.param, []).append(held)
    for held in source.holdings:
        for want in wanted.get(held.param, ()):
            shared = _shared(held, want)
            if shared:
                rows, cols = (
                    slice(ranks.start, ranks.stop, ranks.step) for ranks in (held.ranks, want.ranks)
                )
                found[rows, cols] += shared
    return found


def needed(target: Layout, *, fp8: bool | None = None) -> np.ndarray:
    """int64 [target ranks]: elements that each target rank holds.

    Args:
        fp8: as for held_there.
    """
    found = np.zeros(target.world_size, np.int64)
    for held in _of_precision(target, fp8):
        elements = len(held.layers) * len(held.experts) * size(held.rows) * size(held.cols)
        found[held.ranks.start : held.ranks.stop : held.ranks.step] += elements
    return found


def place(source: Layout, targets: tuple[Layout, ...], topology: Topology, scope: Scope) -> Topology:
    """Permute target ranks over their devices, inside each node or over the whole cluster.

    Returns:
        The topology with the most elements on devices that hold them. Ranks stay where they are if a
        permutation gains nothing.
    """
    slots = [(target, rank) for target, layout in enumerate(targets) for rank in range(layout.world_size)]
    devices = np.array([topology.targets[target][rank] for target, rank in slots])
    local = _local(source, targets, topology, devices)
    chosen = devices.copy()
    nodes = devices // topology.node_size if scope == "node" else np.zeros_like(devices)
    for node in np.unique(nodes):
        here = np.flatnonzero(nodes == node)
        gain = local[np.ix_(here, here)]
        if np.trace(gain) < gain.max(axis=0).sum():  # Otherwise every rank is already on its best device.
            _, rows, cols = lap.lapjvx(
                -gain.astype(np.float64)
            )  # float64 keeps whole numbers below 2^53 exact.
            if gain[rows, cols].sum() > np.trace(gain):
                chosen[here[cols]] = devices[here[rows]]
    moved = iter(chosen.tolist())
    return replace(topology, targets=tuple(tuple(next(moved) for _ in ranks) for ranks in topology.targets))


def _local(
    source: Layout, targets: tuple[Layout, ...], topology: Topology, devices: np.ndarray
) -> np.ndarray:
    """[devices in this order, target ranks]: elements that are on the device already."""
    kinds = {layout: held_there(source, layout) for layout in dict.fromkeys(targets)}
    held = np.concatenate([kinds[layout] for layout in targets], 1)
    ranks = {device: rank for rank, device in enumerate(topology.source)}
    rows = [held[ranks[device]] if device in ranks else np.zeros_like(held[0]) for device in devices.tolist()]
    return np.stack(rows)


def _of_precision(target: Layout, fp8: bool | None) -> list[Holding]:
    return [held for held in target.holdings if fp8 is None or held.fp8 == fp8]


def _shared(held: Holding, want: Holding) -> int:
    count = len(common_range(held.layers, want.layers)) * len(common_range(held.experts, want.experts))
    if not count:
        return 0
    rows = sum(span.length for span in overlap(held.rows, want.rows))
    return rows and count * rows * sum(span.length for span in overlap(held.cols, want.cols))
