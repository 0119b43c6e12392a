"""Plans between random layouts: proved, carried out on whole tensors, equal however one asks for them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_values import held_by, layouts
from model_values import DENSE, FAMILIES, specs, tiny
from shard_oracle import strided_copies

from hybridrl.errors import LayoutError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import count
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.proof import prove
from hybridrl.reshard.table import tabulate
from hybridrl.reshard.topology import Topology


@st.composite
def jobs(draw, families=DENSE):
    spec = draw(specs(families))
    source = draw(layouts(spec))
    targets = draw(st.lists(layouts(spec), min_size=1, max_size=3))
    wanted = [held_by(target) for target in targets]
    return Job(source, tuple(targets)), held_by(source), wanted


def carry_out(transfers, held, wanted):
    """Target tensors after the plan, padding zero."""
    found = [
        [{name: torch.zeros_like(t) for name, t in rank.items()} for rank in target] for target in wanted
    ]
    for source_rank, tensors in enumerate(held):
        table = tabulate(t for t in transfers if t.source_rank == source_rank)
        sources = [tensors[name].numpy() for name in table.sources]
        strided_copies(table, sources, [found[t][rank][name].numpy() for t, rank, name in table.targets])
    return found


@given(jobs(tuple(FAMILIES)))
def test_any_layout_becomes_any_other(drawn):
    job, held, wanted = drawn
    transfers = plan(job)
    found = carry_out(transfers, held, wanted)
    for target, ranks in enumerate(wanted):
        for rank, tensors in enumerate(ranks):
            for name, tensor in tensors.items():
                assert torch.equal(found[target][rank][name], tensor), (target, rank, name)


@given(jobs(tuple(FAMILIES)))
def test_every_plan_is_proved_and_moves_no_more_than_it_must(drawn):
    job, _, wanted = drawn
    proof = prove(job, plan(job))
    assert proof.elements == proof.bound
    assert proof.num_tensors == sum(len(tensors) for ranks in wanted for tensors in ranks)


@given(jobs(tuple(FAMILIES)))
def test_ranks_that_plan_alone_find_their_part_of_the_whole_plan(drawn):
    job, held, _ = drawn
    transfers = plan(job)
    for rank in range(len(held)):
        assert plan(job, source_rank=rank) == [t for t in transfers if t.source_rank == rank]
    for rank in range(max(layout.world_size for layout in job.targets)):
        assert plan(job, target_rank=rank) == [t for t in transfers if t.target_rank == rank]


@given(jobs(), st.sampled_from([1, 2, 4]), st.sampled_from([Topology.colocated, Topology.separate]))
def test_bytes_that_cross_once_per_node_fill_every_rank(drawn, node_size, make):
    job, held, _ = drawn
    sizes = [layout.world_size for layout in job.targets]
    if make == Topology.colocated and sum(sizes) > len(held):
        make = Topology.separate
    topology = make(len(held), sizes, node_size)
    unicast = replace(job, topology=topology)
    once = replace(unicast, once_per_node=True)
    transfers = plan(once)
    proof = prove(once, transfers)
    assert proof.elements == proof.bound
    crossing = far_elements(once, transfers)
    assert crossing <= far_elements(unicast, plan(unicast))
    if node_size == 1:
        assert crossing == far_elements(unicast, plan(unicast))
    for rank in range(len(topology.source) + len(topology.agents)):
        assert plan(once, source_rank=rank) == [t for t in transfers if t.source_rank == rank]


def far_elements(job, transfers):
    topology = job.topology
    return sum(
        t.elements
        for t in transfers
        if topology.node(topology.targets[t.target][t.target_rank])
        != topology.node(topology.targets[t.via[0]][t.via[1]] if t.via else topology.source[t.source_rank])
    )


def test_a_model_enters_a_node_of_four_engines_once():
    spec = tiny(num_layers=8)
    job = Job(MegatronLayout(spec, tp=2), (SGLangLayout(spec, tp=2),) * 4, Topology.separate(2, [2] * 4, 8))
    once = replace(job, once_per_node=True)
    assert far_elements(once, plan(once)) == count(spec) < far_elements(job, plan(job)) / 4


def small_job(**changes):
    spec = tiny(
        hidden_size=64, num_heads=8, num_kv_heads=2, head_dim=8, ffn_size=96, vocab_size=512, **changes
    )
    return Job(MegatronLayout(spec, tp=2, pp=2, dp=2), (SGLangLayout(spec, tp=4), SGLangLayout(spec)))


def test_replicas_share_the_work():
    job = small_job(num_layers=16)
    assert prove(job, plan(job)).imbalance < 1.15


def test_a_large_box_is_shared_by_rows():
    spec = tiny(hidden_size=512, vocab_size=1024)
    job = Job(MegatronLayout(spec, dp=4), (SGLangLayout(spec),))
    parts = [t for t in plan(job) if t.param == "embed"]
    assert [(t.source_rank, t.boxes[0].shape) for t in parts] == [(rank, (256, 512)) for rank in range(4)]


def test_the_two_copies_of_a_tied_embedding_share_the_work():
    spec = tiny(tied=True, hidden_size=512, vocab_size=1024)
    job = Job(MegatronLayout(spec, pp=2), (SGLangLayout(spec),))
    parts = {t.source_tensor: t.source_rank for t in plan(job) if t.param == "embed"}
    assert parts == {"embedding.word_embeddings.weight": 0, "output_layer.weight": 1}


def test_replicas_nearby_are_preferred():
    job = small_job()
    node_of = (0, 0, 1, 1, 0, 0, 1, 1)
    devices = tuple(8 * node + rank for rank, node in enumerate(node_of))
    near = replace(job, topology=Topology(devices, ((17, 18, 19, 20), (6,)), 8))
    transfers = plan(near)
    assert {t.source_rank for t in transfers if t.target == 1} == {0, 1, 4, 5}
    assert {t.source_rank for t in transfers if t.target == 0} == set(range(8))
    assert prove(near, transfers).elements == prove(job, plan(job)).elements


def test_runs_that_touch_on_both_sides_are_one_copy():
    """If a rank has one kv head, Megatron's grouped order is SGLang's order: one box instead of three."""
    spec = tiny(num_heads=4, num_kv_heads=2)
    job = Job(MegatronLayout(spec, tp=2), (SGLangLayout(spec, tp=2),))
    assert all(len(t.boxes) == 1 for t in plan(job) if t.param == "layers.*.qkv")


def test_digests_tell_jobs_apart():
    job = small_job()
    other = [
        replace(job, source=replace(job.source, dp=4)),
        replace(job, source=replace(job.source, vocab_multiple=64)),
        replace(job, source=replace(job.source, spec=replace(job.source.spec, rope_scaling={"factor": 2}))),
        replace(job, targets=job.targets[:1]),
        replace(job, targets=job.targets[::-1]),
        replace(job, lost=frozenset({1})),
        replace(job, topology=Topology.colocated(8, (4, 1), 8)),
        replace(job, topology=Topology.colocated(8, (4, 1), 4)),
    ]
    assert small_job().digest == job.digest
    assert len({job.digest, *(o.digest for o in other)}) == 1 + len(other)


def faults(transfers):
    """(what is wrong, a plan with that fault)"""
    qkv = next(i for i, t in enumerate(transfers) if t.param == "layers.*.qkv")
    good = transfers[qkv]
    box = good.boxes[0]

    def changed(**fields):
        return [*transfers[:qkv], replace(good, **fields), *transfers[qkv + 1 :]]

    def moved(**fields):
        return changed(boxes=(box._replace(**fields), *good.boxes[1:]))

    yield "never written", [*transfers[:qkv], *transfers[qkv + 1 :]]
    yield "never written", changed(layers=good.layers[1:])
    yield "never written", moved(shape=(box.shape[0] - 1, box.shape[1]))
    yield "never written", moved(shape=(box.shape[0], box.shape[1] - 1))
    yield "written too often", [*transfers, good]
    yield "takes rows", moved(source=(box.source[0] + 1, box.source[1]))
    yield (
        "takes rows",
        moved(shape=(box.shape[0], box.shape[1] - 1), source=(box.source[0], box.source[1] + 1)),
    )
    yield "does not hold", changed(source_rank=good.source_rank + 4)
    yield "does not hold", changed(source_tensor="decoder.final_layernorm.weight")
    yield "no target holds", [*transfers, replace(good, target_tensor="elsewhere")]
    yield "no target holds", [*transfers, replace(good, target_rank=7)]


@pytest.mark.parametrize("index", range(11))
def test_the_proof_finds_planted_faults(index):
    job = small_job()
    message, faulty = list(faults(plan(job)))[index]
    with pytest.raises(LayoutError, match=message):
        prove(job, faulty)


def test_a_large_model_is_planned_for_one_rank_without_the_others():
    """72 B, TP8 x PP4 x DP2 to 8 engines of TP8: a rank sees its own layers and its half of the replicas."""
    spec = tiny(
        "qwen2",
        hidden_size=8192,
        num_layers=80,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        ffn_size=29568,
        vocab_size=152064,
    )
    job = Job(MegatronLayout(spec, tp=8, pp=4, dp=2), (SGLangLayout(spec, tp=8),) * 8)
    mine = plan(job, source_rank=job.source.rank(5, 1, 2))
    assert {t.source_rank for t in mine} == {job.source.rank(5, 1, 2)}
    assert {layer for t in mine for layer in t.layers} <= set(range(40, 60))
    matrices = [t for t in mine if t.param == "layers.*.down"]
    assert (
        sum(len(t.layers) * b.shape[0] * b.shape[1] for t in matrices for b in t.boxes)
        == 8 * 20 * 4096 * 3696
    )
