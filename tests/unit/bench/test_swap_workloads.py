"""What the swap benchmarks count and compare, on models small enough to count one by one."""

from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_values import tiny

from benchmarks import reshard_gpu
from benchmarks._reshard_awex import _tensors
from hybridrl.bench.workloads import swap
from hybridrl.bench.workloads.bounds import demand, held_by_rank, least_peak, missing, needed
from hybridrl.bench.workloads.swap_plans import cold_rank, planned
from hybridrl.bench.workloads.swap_shapes import CONFIGS, FSDP_WORKLOADS, PLANNED, WORKLOADS
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import count
from hybridrl.reshard.executors.base import find
from hybridrl.reshard.plan import Job
from hybridrl.reshard.topology import Topology

CPU = torch.device("cpu")
SIZES = {"hidden_size": 8, "num_heads": 8, "num_kv_heads": 2, "ffn_size": 16, "num_layers": 4}
LAYOUTS = [{}, {"dp": 4}, {"tp": 4}, {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2, "vpp": 2}, {"pp": 2, "cp": 2}]


def test_every_workload_fills_its_devices() -> None:
    for w in (*PLANNED, *FSDP_WORKLOADS):
        assert w.model in CONFIGS
        if w.colocated:
            assert w.num_engines * w.engine.world_size == w.source.world_size


def elements(layout, rank):
    """Every element that a rank holds, as (parameter, row, column)."""
    return {
        (shard.param, row, col)
        for shard in layout.shards(rank).values()
        for box in shard.boxes()
        for row in range(box.at[0], box.at[0] + box.shape[0])
        for col in range(box.at[1], box.at[1] + box.shape[1])
    }


@given(
    st.sampled_from(["qwen2", "qwen3_moe", "deepseek_v3"]),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.sampled_from([{"tp": 1}, {"tp": 4}, {"tp": 2}]),
    st.data(),
)
def test_the_bound_is_what_a_set_of_elements_says(family, tied, fields, engine_fields, data) -> None:
    model = tiny(family, **SIZES | {"tied": tied} | ({"num_kv_heads": 8} if family == "deepseek_v3" else {}))
    source, engine = MegatronLayout(model, **fields), SGLangLayout(model, **engine_fields)
    rank = data.draw(st.integers(0, source.world_size - 1))
    target_rank = data.draw(st.integers(0, engine.world_size - 1))
    have, need = held_by_rank(source)[rank], held_by_rank(engine)[target_rank]
    wanted = elements(engine, target_rank)
    assert needed(need) == len(wanted)
    assert missing(need, have) == len(wanted - elements(source, rank))
    assert missing(need, {}) == len(wanted)


@pytest.mark.parametrize(
    "name",
    [
        "W1",
        "W2",
        "W4",
        "W6",
        "W7q",
        "W7qs",
        "W11a",
        "W11b",
        "F1",
        "F2",
        "F3",
        "F4",
        "V1",
        "V2",
        "V3",
        "V4",
        "V5",
    ],
)
def test_plans_move_as_little_as_the_bound_and_cover_everything(name) -> None:
    found = planned(next(w for w in (*PLANNED, *FSDP_WORKLOADS) if w.name == name))
    assert found["network_bytes"] == found["bound_bytes"]
    assert found["covered_bytes"] == found["covered_tensors"] == 1.0
    least = found.get("least_imbalance", 1.0)  # there is none of what nodes pass on inside
    assert found.get("least_imbalance_any_node", 1.0) <= least <= found["imbalance"] + 1e-4
    assert found["imbalance"] <= max(1.15, 1.01 * least)


def test_who_alone_holds_something_sends_it() -> None:
    alone, shared = frozenset({0}), frozenset({0, 1, 2})
    assert least_peak({alone: 6, shared: 6}) == pytest.approx(6)
    assert least_peak({alone: 3, shared: 6}) == pytest.approx(3)
    assert least_peak({alone: 3, shared: 9}) == pytest.approx(4)
    assert least_peak({}) == 0


@given(st.dictionaries(st.frozensets(st.integers(0, 4), min_size=1), st.integers(1, 20), max_size=6))
def test_the_peak_is_what_the_worst_set_of_ranks_cannot_pass_on(crossing) -> None:
    """Hall's theorem, as Ford and Fulkerson have it for amounts: some ranks send all that only they hold."""
    ranks = sorted(set().union(*crossing))
    sets = [set(some) for size in range(1, len(ranks) + 1) for some in combinations(ranks, size)]
    worst = max(
        (sum(n for who, n in crossing.items() if who <= some) / len(some) for some in sets), default=0
    )
    assert least_peak(crossing) == pytest.approx(worst)


def test_what_crosses_is_counted_once_for_each_device_that_misses_it() -> None:
    model = tiny("qwen2", **SIZES | {"tied": True})
    source, engine = MegatronLayout(model, tp=2, dp=2), SGLangLayout(model, tp=1)
    topology = Topology.colocated(4, [1] * 4, node_size=2)
    have, need = held_by_rank(source), held_by_rank(engine)[0]
    for nearest in (False, True):
        crossing = demand(source, engine, topology, nearest=nearest)
        assert sum(crossing.values()) == sum(missing(need, have[rank]) for rank in range(4))
        halves = [{0, 2}, {1, 3}] if not nearest else [{0}, {1}, {2}, {3}]
        assert sorted(map(sorted, crossing)) == sorted(map(sorted, halves))


def test_placement_gains_are_those_of_the_reference() -> None:
    w2 = planned(next(w for w in WORKLOADS if w.name == "W2"))
    assert w2["local_share"] == {"as numbered": 0.25, "inside nodes": 0.5, "anywhere": 0.5}


def test_a_rank_plans_from_a_few_kilobytes() -> None:
    k2 = next(w for w in WORKLOADS if w.name == "W10")
    assert cold_rank(k2.name, 0)["metadata_bytes"] <= 8192


def test_ratios_are_taken_within_a_round() -> None:
    spent = {name: [1.0, 1.0] for name in swap.CONTENDERS}
    spent["megatron-core, gloo service"], spent[swap.OURS[0]] = [4.0, 40.0], [2.0, 20.0]
    facts = dict.fromkeys(spent, 0.0), dict.fromkeys(spent, True)
    found = swap.standings(spent, 10**9, *facts)
    assert found["times_faster"][swap.OURS[0]]["megatron-core, gloo service"] == 2.0
    assert found["contenders"][swap.OURS[1]]["gb_per_s"] == 1.0


@pytest.mark.parametrize("name", ["W2", "W11a"])
def test_awex_is_told_of_every_element_once_per_copy(name) -> None:
    workload = next(w for w in WORKLOADS if w.name == name)
    for layout in (workload.source, workload.engine):
        told = 0
        for tensor in _tensors(layout):
            assert sum(prod(box.shape) for box in tensor.boxes) == prod(tensor.shape)
            told += prod(tensor.shape) * len(tensor.layers) * len(tensor.experts)
        assert told == count(workload.source.spec)


def small_job() -> Job:
    model = tiny("qwen3_moe", **SIZES | {"num_experts": 4, "expert_ffn_size": 4})
    return Job(MegatronLayout(model, tp=2, dp=2, ep=2), (SGLangLayout(model, tp=2, ep=2),) * 2)


def test_a_replay_is_all_that_one_engine_rank_needs() -> None:
    job = small_job()
    for rank in (0, 1):
        work = reshard_gpu.replay(job, target=1, rank=rank)
        assert work.payload_bytes == 2 * needed(held_by_rank(job.targets[1])[rank])
        assert {name for _, _, name in work.table.targets} == set(job.targets[1].shards(rank))


@pytest.mark.parametrize("executor", ["torch_copy", "native"])
def test_all_ways_write_the_same_bits(executor) -> None:
    work = reshard_gpu.replay(small_job())
    found = reshard_gpu.measure_here(work, work.sources(CPU), find(executor), CPU, rounds=2)
    assert not found["differ"] and any(found["fingerprint"])
    assert {len(times) for times in found["spent"].values()} == {2}
    lines = reshard_gpu.report(found["spent"], work.payload_bytes, ceiling=1.0)
    assert all(
        line["share_of_ceiling"] == pytest.approx(line["gb_per_s"], abs=0.1) for line in lines.values()
    )


def test_a_way_that_differs_is_named() -> None:
    tensors = [torch.arange(6, dtype=torch.int16).view(torch.bfloat16).view(2, 3)]
    before = reshard_gpu.fingerprint(tensors)
    tensors[0][0], tensors[0][1] = tensors[0][1].clone(), tensors[0][0].clone()
    assert reshard_gpu.fingerprint(tensors) != before


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 30))
def test_buckets_keep_order_and_bound(sizes, limit) -> None:
    values = [torch.full((size,), i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    found = reshard_gpu.buckets(values, values, limit)
    assert [int(v[0]) for bucket, _ in found for v in bucket] == list(range(len(sizes)))
    for bucket, _ in found:
        assert len(bucket) == 1 or sum(v.nbytes for v in bucket) <= limit


def test_fp8_targets_are_whole_blocks_of_weights() -> None:
    assert reshard_gpu.is_quantised("model.layers.0.mlp.experts.w13_weight", (8, 256, 384))
    assert not reshard_gpu.is_quantised("model.layers.0.self_attn.q_b_proj.weight", (64, 128))
    assert not reshard_gpu.is_quantised("model.embed_tokens.weight", (256, 128))
    work = reshard_gpu.Replay(
        reshard_gpu.Table(["x"], [(0, 0, "w"), (0, 0, "b")], np.zeros((0, 8), np.int64)),
        ((256, 128),),
        ((256, 128), (5,)),
    )
    quantised, plain = work.fp8_targets(CPU)
    assert quantised.scales.shape == (2, 1) and plain.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["reshard_gpu"])
    with pytest.raises(SystemExit) as ended:
        reshard_gpu.main()
    assert ended.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err
