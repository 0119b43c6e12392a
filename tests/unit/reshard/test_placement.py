"""Placement: never a loss, as good as any permutation, and HybridFlow's groups where those exist."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_values import specs, tiny, tp_sizes

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.placement import held_there, needed, place
from hybridrl.reshard.topology import Topology

QWEN_7B = tiny(
    "qwen2",
    hidden_size=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    ffn_size=18944,
    vocab_size=152064,
)


def here(source, targets, topology):
    """Share of the elements that are on their device already."""
    there = sum(
        held_there(source, layout)[device, rank]
        for target, layout in enumerate(targets)
        for rank, device in enumerate(topology.targets[target])
    )
    return there / sum(needed(layout).sum() for layout in targets)


def colocated(source, targets, node_size=8):
    return Topology.colocated(source.world_size, [layout.world_size for layout in targets], node_size)


@pytest.mark.parametrize(("tp", "as_numbered", "nested"), [(2, 50, 50), (4, 25, 50)])
def test_seven_billion_parameters_on_a_node(tp, as_numbered, nested):
    """To engines of tp 2, or 1: permuting ranks inside a node doubles what is there already."""
    source = MegatronLayout(QWEN_7B, tp=tp, dp=8 // tp)
    targets = (SGLangLayout(QWEN_7B, tp=1 if tp == 2 else 2),) * (8 if tp == 2 else 4)
    topology = colocated(source, targets)
    assert 100 * here(source, targets, topology) == pytest.approx(as_numbered, abs=0.5)
    assert 100 * here(source, targets, place(source, targets, topology, "node")) == pytest.approx(
        nested, abs=0.5
    )


@st.composite
def jobs(draw):
    spec = draw(specs())
    tp = draw(st.sampled_from([n for n in tp_sizes(spec) if n <= 4]))
    source = MegatronLayout(spec, tp=tp, dp=draw(st.integers(1, 2)))
    engine = SGLangLayout(spec, tp=draw(st.sampled_from([n for n in tp_sizes(spec) if n <= 2])))
    return source, (engine,) * max(1, min(2, source.world_size // engine.world_size))


@given(jobs())
@settings(max_examples=25)
def test_placement_keeps_every_device_and_beats_every_permutation(job):
    source, targets = job
    topology = colocated(source, targets)
    best = place(source, targets, topology, "cluster")
    devices = [device for ranks in topology.targets for device in ranks]
    assert sorted(d for ranks in best.targets for d in ranks) == devices
    sizes = [layout.world_size for layout in targets]
    every = (
        Topology(topology.source, tuple(np.split(np.array(order), np.cumsum(sizes)[:-1])), 8)
        for order in permutations(devices)
    )
    assert here(source, targets, best) == max(here(source, targets, other) for other in every)


def test_engines_on_devices_of_their_own_stay_where_they_are():
    source, targets = MegatronLayout(tiny(), tp=2), (SGLangLayout(tiny(), tp=2),)
    topology = Topology.separate(2, [2], 8)
    assert topology.targets == ((8, 9),)
    assert place(source, targets, topology, "cluster") == topology


def test_a_node_keeps_its_ranks():
    """Over the whole cluster more is gained than inside nodes of two devices."""
    spec = tiny(num_heads=8, num_kv_heads=4, num_layers=4)
    source, targets = MegatronLayout(spec, tp=4, dp=2), (SGLangLayout(spec, tp=2),) * 4
    topology = colocated(source, targets, node_size=2)
    inside = place(source, targets, topology, "node")
    for before, after in zip(topology.targets, inside.targets, strict=True):
        assert {d // 2 for d in before} == {d // 2 for d in after}
    anywhere = place(source, targets, topology, "cluster")
    assert here(source, targets, topology) <= here(source, targets, inside) < here(source, targets, anywhere)
