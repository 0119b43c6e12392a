"""Layouts of a model in every kind of parallelism, drawn, and the tensors that each of their ranks holds."""

import numpy as np
import torch
from hypothesis import strategies as st
from model_values import hf_tensors, tp_sizes

from hybridrl.layout.base import instance
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import parameters


@st.composite
def layouts(draw, spec, kinds=("hf", "fsdp", "sglang", "megatron")):
    kind = draw(st.sampled_from(kinds))
    if kind == "hf":
        return HFLayout(spec)
    if kind == "fsdp":
        return FSDPLayout(spec, num_shards=draw(st.integers(1, 4)))
    tp = draw(st.sampled_from(tp_sizes(spec)))
    if kind == "sglang":
        parts = [n for n in range(1, tp + 1) if tp % n == 0]
        ep = draw(st.sampled_from([n for n in parts if spec.num_experts % n == 0])) if spec.num_experts else 1
        return SGLangLayout(spec, tp=tp, ep=ep, interleave=draw(st.sampled_from([0, 1])))
    pp, vpp = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    cp, dp = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    ranks, experts = tp * cp * dp, spec.num_experts
    ep = draw(st.sampled_from([n for n in range(1, (experts or 1) + 1) if experts % n == 0 == ranks % n]))
    etp = draw(st.sampled_from([n for n in (1, 2) if ranks // ep % n == 0])) if experts else 1
    cuts = sorted(draw(st.integers(0, spec.num_layers)) for _ in range(pp * vpp - 1))
    return MegatronLayout(
        spec,
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        ep=ep,
        etp=etp,
        vpp=vpp,
        stage_layers=tuple(np.diff([0, *cuts, spec.num_layers]).tolist()),
        vocab_multiple=draw(st.sampled_from([1, 8, 128])),
        transformer_engine=draw(st.booleans()),
    )


def held_by(layout, seed=0):
    """By rank, the tensors under the names of a layout, cut from whole parameters; padding zero."""
    whole = whole_parameters(layout.spec, hf_tensors(layout.spec, seed))
    return [
        {name: hold(shard, whole[shard.param]) for name, shard in layout.shards(rank).items()}
        for rank in range(layout.world_size)
    ]


def hold(shard, param):
    """Cut a shard from its whole parameter, by its runs; padding zero."""
    flat = torch.zeros(shard.shape)
    flat = flat.reshape(-1, 1) if flat.ndim == 1 else flat.reshape(-1, shard.shape[-1])
    for box in shard.boxes():
        (at_row, at_col), (row, col), (rows, cols) = box
        flat[row : row + rows, col : col + cols] = param[at_row : at_row + rows, at_col : at_col + cols]
    return flat.reshape(shard.shape)


def whole_parameters(spec, hf):
    found = {}
    for parameter in parameters(spec):
        for layer in parameter.layers:
            blocks = [
                hf[instance(name, layer, expert)] for expert in parameter.experts for name in parameter.row.hf
            ]
            whole = torch.cat(blocks)
            found[instance(parameter.name, layer)] = whole.reshape(len(whole), -1)
    return found
