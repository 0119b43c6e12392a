"""Layouts of a model in every kind of parallelism, drawn, and the tensors that each of their ranks holds."""

import numpy as np
import torch
from hypothesis import strategies as st
from model_values import hf_tensors, tp_sizes

from hybridrl.layout.base import instance
from hybridrl.layout.fsdp import FAMILIES, FSDPLayout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import parameters

_WITH_DP_ATTENTION = ("qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3")


def layouts(spec):
    """Of any system."""
    kinds = (megatron_layouts, sglang_layouts, fsdp_layouts)
    return st.one_of(st.just(HFLayout(spec)), *(kind(spec) for kind in kinds))


@st.composite
def megatron_layouts(draw, spec):
    tp = draw(st.sampled_from(tp_sizes(spec)))
    pp, vpp = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)]))
    cp, dp = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    ranks, experts = tp * cp * dp, spec.num_experts
    ep = draw(st.sampled_from([n for n in range(1, (experts or 1) + 1) if experts % n == 0 == ranks % n]))
    etp = draw(st.sampled_from([n for n in (1, 2, 3) if ranks // ep % n == 0])) if experts else 1
    even = spec.num_layers % (pp * vpp) == 0 and draw(st.booleans())
    cuts = sorted(draw(st.integers(0, spec.num_layers)) for _ in range(pp * vpp - 1))
    edges = [0, *cuts, spec.num_layers]
    return MegatronLayout(
        spec,
        tp=tp,
        pp=pp,
        dp=dp,
        cp=cp,
        ep=ep,
        etp=etp,
        vpp=vpp,
        stage_layers=() if even else tuple(np.diff(edges).tolist()),
        vocab_multiple=draw(st.sampled_from([1, 8, 128])),
        transformer_engine=draw(st.booleans()),
    )


@st.composite
def sglang_layouts(draw, spec):
    tp = draw(st.sampled_from(tp_sizes(spec)))
    parts = [n for n in range(1, tp + 1) if tp % n == 0]
    ep = draw(st.sampled_from([n for n in parts if spec.num_experts % n == 0])) if spec.num_experts else 1
    copies = 1
    if spec.family in _WITH_DP_ATTENTION:
        copies = draw(st.sampled_from([n for n in parts if tp // n in tp_sizes(spec)]))
    widths = [n for n in (0, 1, 2) if not n or spec.expert_ffn_size // (tp // ep) % n == 0]
    return SGLangLayout(
        spec,
        tp=tp,
        ep=ep,
        dp_attention=copies,
        dp_lm_head=copies > 1 and draw(st.booleans()),
        interleave=draw(st.sampled_from(widths)),
    )


@st.composite
def fsdp_layouts(draw, spec):
    trained = spec.family in FAMILIES
    k_rows = spec.num_kv_heads * spec.head_dim
    tp = draw(st.sampled_from([n for n in tp_sizes(spec) if n <= 4 and not k_rows % n])) if trained else 1
    cp, dp = draw(st.sampled_from([1, 2])), draw(st.integers(1, 6))
    shard = draw(st.sampled_from([0, *(n for n in range(1, cp * dp + 1) if cp * dp % n == 0)]))
    return FSDPLayout(spec, tp=tp, cp=cp, dp=dp, shard=shard)


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
            found[instance(parameter.name, layer)] = (
                whole.unsqueeze(1) if whole.ndim == 1 else whole.flatten(0, -2)
            )
    return found
