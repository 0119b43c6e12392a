"""The swap before a run: bytes that add up, no more on the network than must be, and a paper's numbers."""

from dataclasses import replace
from math import prod

import pytest
from fp8_values import DENSE, EXPERTS, checkpoint, fp8_engine, fp8_layout
from hypothesis import given, settings
from hypothesis import strategies as st
from model_values import specs, tiny, tp_sizes

from hybridrl.estimate.swap import estimate, lines
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.runs import size
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import count
from hybridrl.reshard.plan import Job
from hybridrl.reshard.topology import Topology


@st.composite
def jobs(draw):
    spec = draw(specs())
    tp = draw(st.sampled_from(tp_sizes(spec)))
    source = MegatronLayout(spec, tp=tp, dp=draw(st.integers(1, 3)))
    engines = (SGLangLayout(spec, tp=draw(st.sampled_from(tp_sizes(spec)))),) * draw(st.integers(1, 3))
    make = draw(st.sampled_from([Topology.colocated, Topology.separate]))
    sizes = [engine.world_size for engine in engines]
    return Job(source, engines, make(source.world_size, sizes, draw(st.sampled_from([1, 2, 8]))))


@given(jobs())
@settings(max_examples=40)
def test_links_add_up_and_no_more_crosses_them_than_must(job):
    found = estimate(job, 2)
    assert found.device_bytes + found.node_bytes + found.remote_bytes == found.written_bytes
    assert found.node_bytes + found.remote_bytes == found.bound_bytes
    assert found.held["as numbered"] <= found.held["inside nodes"] <= found.held["anywhere"]
    assert found.imbalance >= 1


def test_an_engine_of_one_rank_receives_the_model():
    spec = tiny("qwen2", num_layers=2)
    job = Job(MegatronLayout(spec), (SGLangLayout(spec),), Topology.separate(1, [1], 8))
    assert estimate(job, 4).written_bytes == estimate(job, 4).remote_bytes == 4 * count(spec)


@pytest.mark.parametrize(("ranks", "tp"), [(2, 1), (2, 2), (3, 1), (4, 2)])
def test_shards_of_rows_move_no_more_than_must(ranks, tp):
    spec = tiny("qwen3", num_layers=2)
    sizes = [tp] * (ranks // tp)
    engines = tuple(SGLangLayout(spec, tp=size) for size in sizes)
    found = estimate(Job(FSDPLayout(spec, dp=ranks), engines, Topology.colocated(ranks, sizes, ranks)), 2)
    assert found.node_bytes == found.bound_bytes > 0 and found.remote_bytes == 0
    assert found.written_bytes >= 2 * count(spec) * len(engines)


def test_nested_layouts_move_what_hybridflow_says():
    """(t - t_g) / (t_g t) of the model to a rank (arXiv:2409.19256, table 2)."""
    spec = tiny(num_heads=8, num_kv_heads=8, ffn_size=16, vocab_size=512, hidden_size=64, tied=True)
    engines = (SGLangLayout(spec, tp=2),) * 4
    job = Job(MegatronLayout(spec, tp=8, vocab_multiple=1), engines, Topology.colocated(8, [2] * 4, 8))
    found = estimate(job, 2)
    norms = 2 * 8 * (2 * 4 + 1) * 64 + 2 * 8 * 2 * 4 * 2
    assert found.bound_bytes == (found.written_bytes - norms) * (8 - 2) // 8
    assert found.imbalance == 1


def test_a_person_reads_the_verdict():
    spec = tiny()
    job = Job(MegatronLayout(spec, tp=2), (SGLangLayout(spec),), Topology.colocated(2, [1], 2))
    text = dict(lines(estimate(job, 4)))
    assert "1.000 x the least possible" in text["network"]
    assert "every element written once" in text["proof"]


@pytest.mark.parametrize("spec", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("once_per_node", [False, True])
def test_fp8_counts_bytes_and_scales_of_what_is_quantised(spec, once_per_node):
    source, engine = MegatronLayout(spec, tp=2, pp=2), fp8_layout(spec, tp=2)
    make = Topology.separate if once_per_node else Topology.colocated
    job = Job(source, (engine,) * 2, make(4, [2, 2], 2), once_per_node=once_per_node)
    found, plain = estimate(job, 2), estimate(replace(job, targets=(SGLangLayout(spec, tp=2),) * 2), 2)
    hf = checkpoint(spec)
    held = sum(tensor.nbytes for rank in (0, 1) for tensor in fp8_engine(engine, hf, rank).values())
    padding = sum(
        2 * (prod(shard.shape) - size(shard.rows) * size(shard.cols))
        for rank in (0, 1)
        for shard in engine.shards(rank).values()
    )
    assert found.written_bytes == 2 * (held - padding)
    assert found.node_bytes * (not once_per_node) + found.remote_bytes == found.bound_bytes
    assert found.written_bytes < 0.6 * plain.written_bytes
