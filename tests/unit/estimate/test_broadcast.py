"""The least bytes over the network, from the layouts alone: the planner sends them, each once per node."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_values import specs, tiny, tp_sizes

from hybridrl.bench.workloads.swap_shapes import WORKLOADS
from hybridrl.estimate.broadcast import broadcast_bound
from hybridrl.estimate.swap import estimate, lines
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import count
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.topology import Topology


@st.composite
def jobs(draw):
    """Engines on nodes of their own, or on the last GPUs of a node of the trainer."""
    spec = draw(specs())
    tp = draw(st.sampled_from(tp_sizes(spec)))
    source = MegatronLayout(spec, tp=tp, dp=draw(st.integers(1, 3)))
    engines = (SGLangLayout(spec, tp=draw(st.sampled_from(tp_sizes(spec)))),) * draw(st.integers(1, 4))
    sizes, node_size = [engine.world_size for engine in engines], draw(st.sampled_from([1, 2, 4, 8]))
    topology = Topology.separate(source.world_size, sizes, node_size)
    if draw(st.booleans()):
        first = source.world_size - topology.agents[0]
        targets = tuple(tuple(device + first for device in devices) for devices in topology.targets)
        topology = replace(topology, targets=targets, agents=tuple(d for ranks in targets for d in ranks))
    return Job(source, engines, topology, once_per_node=True)


@given(jobs())
@settings(max_examples=40)
def test_the_plan_sends_what_a_broadcast_must_and_every_link_is_counted(job):
    found = estimate(job, 2)
    assert found.remote_bytes == found.bound_bytes == 2 * broadcast_bound(job)
    assert found.device_bytes == 0
    assert found.node_bytes + found.remote_bytes == found.written_bytes
    assert found.num_senders == job.source.world_size


@pytest.mark.parametrize(("engines", "tp", "node_size", "nodes"), [(4, 2, 8, 1), (4, 2, 4, 2), (1, 8, 4, 1)])
def test_a_node_gets_the_model_once(engines, tp, node_size, nodes):
    """An engine of two nodes gets its halves once, and the norms twice."""
    spec = tiny(num_heads=8, num_kv_heads=8)
    topology = Topology.separate(2, [tp] * engines, node_size)
    job = Job(
        MegatronLayout(spec, tp=2), (SGLangLayout(spec, tp=tp),) * engines, topology, once_per_node=True
    )
    least = broadcast_bound(job)
    assert nodes * count(spec) <= least
    assert least == nodes * count(spec) or tp > node_size


@pytest.mark.parametrize(
    "workload", [w for w in WORKLOADS if w.name in ("W7", "W8", "W10")], ids=lambda w: w.name
)
def test_an_engine_of_a_real_model_gets_every_byte_once_per_node(workload):
    """Key-value heads that several ranks of a node share are sent once too."""
    sizes = [layout.world_size for layout in workload.targets]
    topology = Topology.separate(workload.source.world_size, sizes, 8)
    job = Job(workload.source, workload.targets, topology, once_per_node=True)
    assert sizes[0] % 8 == 0, "engines fill nodes, so all need as much"
    sent = sum(
        t.elements for rank in range(sizes[0]) for t in plan(job, target=0, target_rank=rank) if not t.via
    )
    assert sent * len(sizes) == broadcast_bound(job)


def test_a_person_reads_how_much_crosses_the_network():
    spec = tiny()
    topology = Topology.separate(2, [1, 1], 2)
    job = Job(MegatronLayout(spec, tp=2), (SGLangLayout(spec),) * 2, topology, once_per_node=True)
    text = dict(lines(estimate(job, 4)))
    assert "1.000 x the least possible, each byte once per node" in text["network"]
    assert "2 engine ranks on devices of their own" in text["swap"] and "placement" not in text
    one_node = replace(job, topology=replace(topology, node_size=8))
    assert "on a node of the trainer" in dict(lines(estimate(one_node, 4)))["network"]
