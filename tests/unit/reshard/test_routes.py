"""Routes have every transfer once, on a rank that can map its target; both sides list them in one order."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_values import specs, tiny, tp_sizes

from hybridrl.errors import SwapError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.routes import routes
from hybridrl.reshard.topology import Topology


@st.composite
def jobs(draw):
    spec = draw(specs())
    tp = draw(st.sampled_from(tp_sizes(spec)))
    source = MegatronLayout(spec, tp=tp, dp=draw(st.integers(1, 3)))
    engines = (SGLangLayout(spec, tp=draw(st.sampled_from(tp_sizes(spec)))),) * draw(st.integers(1, 2))
    num_ranks = sum(engine.world_size for engine in engines)
    fits = num_ranks <= source.world_size
    make = draw(st.sampled_from([Topology.colocated, Topology.separate] if fits else [Topology.separate]))
    sizes = [engine.world_size for engine in engines]
    topology = make(source.world_size, sizes, draw(st.sampled_from([1, 2, 4])))
    return Job(source, engines, topology, once_per_node=draw(st.booleans()))


@given(jobs(), st.sampled_from(["device", "node"]))
def test_every_transfer_has_one_way(job, reach):
    topology = job.topology
    ranks = range(len(topology.source) + len(topology.agents))
    found = {rank: routes(job, rank, reach) for rank in ranks}
    taken = Counter()
    for rank, own in found.items():
        taken.update((*own.direct, *own.passed_on))
        for sends, receives in ((own.sends, "receives"), (own.forwards, "forwarded")):
            for peer, sent in sends.items():
                assert getattr(found[peer], receives)[rank] == sent
                assert all(topology.targets[t.target][t.target_rank] == topology.device(peer) for t in sent)
                taken.update(sent)
        assert all(rank in found[peer].sends for peer in own.receives)
        assert all(rank in found[peer].forwards for peer in own.forwarded)
        mapped = [topology.targets[t.target][t.target_rank] for t in (*own.direct, *own.passed_on)]
        assert {topology.node(device) for device in mapped} <= {topology.node(topology.device(rank))}
        assert all(topology.targets[t.via[0]][t.via[1]] == topology.device(rank) for t in forwarded(own))
    assert taken == Counter(plan(job))


def forwarded(own):
    return [*own.passed_on, *(t for sent in own.forwards.values() for t in sent)]


def test_an_engine_where_nobody_sits_is_refused():
    spec = tiny()
    separate = replace(Topology.separate(2, [2], 2), agents=(2,))
    job = Job(MegatronLayout(spec, tp=2), (SGLangLayout(spec, tp=2),), separate)
    with pytest.raises(SwapError, match=r"no rank is left on device 3 .*engine 0, rank 1.*agent"):
        routes(job, 0, "node")
