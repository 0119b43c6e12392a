"""The same swap by Megatron-core's own resharding and by hybridrl, on every rank of a group."""

import torch
import torch.distributed as dist

from hybridrl.bench.workloads.swap import same_bits
from hybridrl.bench.workloads.swap_ours import InPlace, OverGloo
from hybridrl.bench.workloads.swap_peers import (
    FullGather,
    MegatronResharding,
    RankZeroBroadcast,
    Swap,
    shard_values,
)
from hybridrl.layout.megatron import MegatronLayout

_EVERY_MODEL = {
    "Megatron, point to point": lambda swap: MegatronResharding(swap, "nccl"),
    "Megatron, gloo service": lambda swap: MegatronResharding(swap, "gloo"),
    "over gloo": lambda swap: OverGloo(swap, "memory"),
    "over gloo, as between hosts": lambda swap: OverGloo(swap, "messages"),
    "in place": InPlace,
}
_DENSE_ONLY = {"full gather": FullGather, "rank-0 broadcast": RankZeroBroadcast}


def swapped(group, spec, fields, to_fields):
    """Who wrote other bits than Megatron, and whether Megatron wrote what the target layout says."""
    swap = Swap.here(MegatronLayout(spec, **fields), MegatronLayout(spec, **to_fields), torch.bfloat16)
    contenders = _EVERY_MODEL | ({} if spec.num_experts else _DENSE_ONLY)
    results = {}
    for name, make in contenders.items():
        contender = make(swap)
        contender.prepare()
        for tensor in swap.wanted.values():
            tensor.zero_()
        dist.barrier(group)  # others may write into these tensors
        contender.run()
        results[name] = {tensor: value.clone() for tensor, value in swap.wanted.items()}
    megatron = results["Megatron, point to point"]
    shards = swap.target.shards(swap.rank)
    named = {name: shard_values(shard, torch.bfloat16) for name, shard in shards.items()}
    differ = [name for name, tensors in results.items() if not same_bits(megatron, tensors)]
    return differ, same_bits(named, megatron)
