"""A swap over ranks that do not reach all engines: each has the engine ranks of its own device."""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from exchange_scenarios import machine
from fp8_values import checkpoint, fp8_engine, same_bits
from model_values import hf_tensors
from shard_oracle import megatron_shard, sglang_shard

from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.agreement import Checksums
from hybridrl.reshard.checksum import checksum
from hybridrl.reshard.communicator import Communicator, Rendezvous
from hybridrl.reshard.routes import Reach
from hybridrl.reshard.swap import STAGING_BYTES, SwapWriter
from hybridrl.reshard.topology import Topology
from hybridrl.reshard.transports import shm


def sums(engines):
    """The checksum of every tensor, given those of each rank of each engine by name."""
    return {
        (e, rank, name): checksum(tensor)
        for e, ranks in enumerate(engines)
        for rank, tensors in enumerate(ranks)
        for name, tensor in tensors.items()
    }


def swap(
    group: dist.ProcessGroup,
    source: MegatronLayout,
    engines: Sequence[SGLangLayout],
    topology: Topology,
    reach: Reach,
    once_per_node: bool,
    fixed: frozenset[str] = frozenset(),
    machines: int = 1,
    staging_bytes: int = STAGING_BYTES,
) -> tuple[list[str], Checksums, Checksums]:
    """(engine tensors here that are wrong, checksums of what was sent, of what arrived here)

    Args:
        fixed: canonical parameters that are written by the first of two swaps only.
        machines: that the ranks take themselves to be on, dealt out in turn.
    """
    rank, make = dist.get_rank(group), checkpoint if engines[0].fp8 else hf_tensors
    first = make(source.spec, 0)
    mine = {
        place: {n: torch.zeros_like(t) for n, t in engine_of(engines[place[0]], first, place[1]).items()}
        for place in topology.written_by(rank)
    }
    exported = {
        place: {name: shm.export(tensor) for name, tensor in tensors.items()}
        for place, tensors in mine.items()
    }
    parts: list[dict] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(parts, exported, group=group)
    every = {place: tensors for part in parts for place, tensors in part.items()}
    exports = [
        (layout, [every[engine, r] for r in range(layout.world_size)])
        for engine, layout in enumerate(engines)
    ]
    with machine(rank % machines):
        writer = SwapWriter(
            source,
            rank,
            exports,
            topology=topology,
            fixed=fixed,
            group=group,
            reach=reach,
            once_per_node=once_per_node,
            staging_bytes=staging_bytes,
        )
    wrong, sent = [], {}
    kept = [name for name, shard in HFLayout(source.spec).shards(0).items() if shard.param in fixed]
    for seed in (0, 1):
        hf = make(source.spec, seed)
        sent = writer.write(shard_of(source, hf, rank)).checksums
        dist.barrier(group)
        hf |= {name: first[name] for name in kept}
        for (engine, r), tensors in mine.items():
            expected = engine_of(engines[engine], hf, r)
            wrong += [f"{engine} {r} {n}" for n, t in tensors.items() if not same_bits(t, expected[n])]
        dist.barrier(group)
    arrived = {(e, r, n): checksum(t) for (e, r), tensors in mine.items() for n, t in tensors.items()}
    return wrong, sent, arrived


def engine_of(layout: SGLangLayout, hf: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """What SGLang's loader puts into a rank of an engine, in FP8 with its quantiser."""
    if layout.fp8:
        return fp8_engine(layout, hf, rank)
    return sglang_shard(layout.spec, hf, tp=layout.tp, ep=layout.ep, rank=rank)


def shard_of(layout: MegatronLayout, hf: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Of a source rank; an agent has nothing."""
    if rank >= layout.world_size:
        return {}
    stage = layout.tp * layout.dp
    pp, place = divmod(rank, stage)
    etp, ep = place % layout.etp, place // layout.etp % layout.ep
    return megatron_shard(
        layout.spec,
        hf,
        tp=layout.tp,
        pp=layout.pp,
        etp=layout.etp,
        ep=layout.ep,
        rank_tp=place % layout.tp,
        rank_pp=pp,
        rank_etp=etp,
        rank_ep=ep,
        transformer_engine=layout.transformer_engine,
    )


def join_beside_a_bound_default(default: dist.ProcessGroup, address: str) -> tuple[list[int], str]:
    """(sums over a group of these ranks that is made beside their default group, device of the default group
    afterwards), where the default group has a device, as that of a trainer on GPUs has."""
    default.bound_device_id = torch.device("cuda:0")
    communicator, sums = Communicator("gloo", timedelta(seconds=20)), []
    for number in range(2):
        rendezvous = Rendezvous(address, str(number), default.size())
        group = communicator.join(rendezvous, default.rank())
        total = torch.tensor([default.rank() + 1])
        dist.all_reduce(total, group=group)
        sums.append(int(total))
    communicator.leave()
    return sums, str(default.bound_device_id)
