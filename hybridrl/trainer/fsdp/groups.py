"""Process groups of the FSDP backend: who shares weights, tokens, heads and trajectories with whom."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hybridrl.layout.fsdp import FSDPLayout


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one rank. Ranks are counted as layout/fsdp.py says."""

    weights: DeviceMesh
    """Ranks that share the rows of a weight; of two dimensions if there are several copies of the model, the
    first over the copies."""

    tp: DeviceMesh
    """Ranks that compute different heads and feed-forward columns of the same tokens."""

    cp: dist.ProcessGroup
    """Ranks that have different tokens of the same sequences."""

    dp: dist.ProcessGroup
    """Ranks with the same share of other trajectories."""

    copy: int
    """Number of the copy of the model that this rank's shards are of."""

    @property
    def tp_group(self) -> dist.ProcessGroup:
        return self.tp.get_group()


def make(layout: FSDPLayout, device: torch.device, timeout: timedelta) -> Groups:
    """*Collective* over all ranks.

    Args:
        timeout: that of a collective of any of these groups.
    """
    copies = layout.cp * layout.dp // layout.num_shards
    weights = init_device_mesh(
        device.type, (copies, layout.num_shards, layout.tp), mesh_dim_names=("copies", "shard", "tp")
    )
    tokens = init_device_mesh(
        device.type, (layout.dp, layout.cp, layout.tp), mesh_dim_names=("dp", "cp", "tp")
    )
    for mesh in (weights, tokens):
        _limit(mesh, timeout)
    return Groups(
        weights=weights[("copies", "shard")] if copies > 1 else weights["shard"],
        tp=weights["tp"],
        cp=tokens.get_group("cp"),
        dp=tokens.get_group("dp"),
        copy=cast(Any, weights).get_local_rank("copies"),
    )


def _limit(mesh: DeviceMesh, timeout: timedelta) -> None:
    """Give the groups of a mesh a timeout; they have torch's default, and not that of all ranks."""
    set_timeout: Any = dist.distributed_c10d._set_pg_timeout  # there is no public way for gloo and NCCL
    for name in mesh.mesh_dim_names or ():
        set_timeout(timeout, mesh.get_group(name))
