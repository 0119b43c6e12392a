"""Boxes between real processes against boxes copied in one, and what a lost process does to the others."""

import time

import pytest
import torch
from exchange_scenarios import (
    Copy,
    Pattern,
    build_all_to_all,
    disagree,
    other_sources,
    patterns,
    refused,
    run_pattern,
    run_sides,
    run_until_lost,
)
from gloo_ranks import GlooRanks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_values import hf_tensors, tiny
from shard_oracle import megatron_shard

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.checksum import MODULUS, checksum
from hybridrl.reshard.exchange import Side
from hybridrl.reshard.execute import copy
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.table import tabulate

F32, BF16 = torch.float32, torch.bfloat16
ONE_WAY = Pattern(4, (Copy(2, 1, 0, 1, 3, 5, 37, 2, F32), Copy(2, 1, 1, 0, 0, 1, 1, 0, BF16)))

CROWD = Pattern(4, tuple(Copy(a, b, 0, 0, 0, 6, 40, 0, F32) for a in range(4) for b in range(4) if a != b))
"""Many messages between all ranks, each in its own round if staging is small."""


@pytest.fixture(scope="module")
def ranks():
    with GlooRanks(4) as group:
        yield group


def assert_moved(pattern, results, staging_bytes):
    """Targets as the oracle has them, sums as the targets have them."""
    parts = {}
    for rank, (targets, moved) in enumerate(results):
        expected = pattern.expected(rank)
        assert targets.keys() == expected.keys()
        assert all(torch.equal(targets[name], value) for name, value in expected.items())
        assert moved.staging_bytes <= staging_bytes
        for name, part in moved.checksums.items():
            parts[name] = (parts.get(name, 0) + part) % MODULUS
    written = {name: value for targets, _ in results for name, value in targets.items()}
    assert parts == {name: checksum(value) for name, value in written.items()}
    assert sum(moved.sent_bytes for _, moved in results) == sum(m.received_bytes for _, m in results)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pattern=patterns(4),
    staging_bytes=st.sampled_from([64, 256, 2048, 1 << 20]),
    machines=st.sampled_from([0, 1, 2]),
    alone_bytes=st.sampled_from([1, 160, 1 << 20]),
)
def test_boxes_arrive_whatever_the_pattern_the_staging_and_the_carrier(
    ranks, pattern, staging_bytes, machines, alone_bytes
):
    results = ranks(run_pattern, pattern, staging_bytes, 1, machines, alone_bytes)
    assert_moved(pattern, results, staging_bytes)


@pytest.mark.parametrize("machines", [0, 1])
def test_one_way_with_ranks_that_have_no_part(ranks, machines):
    results = ranks(run_pattern, ONE_WAY, 1 << 20, 1, machines)
    assert_moved(ONE_WAY, results, 1 << 20)
    (_, idle), (_, receiver), (_, sender), _ = results
    assert idle.staging_bytes == idle.sent_bytes == idle.received_bytes == 0 and idle.checksums == {}
    assert sender.sent_bytes == receiver.received_bytes == 5 * 37 * 4 + 12 + 16
    assert bool(receiver.staging_bytes) == (machines == 0)  # on one machine nothing is staged twice


@pytest.mark.parametrize("machines", [0, 1, 2])
def test_an_exchange_runs_again(ranks, machines):
    assert_moved(ONE_WAY, ranks(run_pattern, ONE_WAY, 128, 3, machines), 128)
    assert_moved(CROWD, ranks(run_pattern, CROWD, 64, 3, machines), 64)
    assert_moved(CROWD, ranks(run_pattern, CROWD, 1 << 20, 3, machines), 1 << 20)


def test_a_byte_that_arrives_damaged_shows(ranks):
    results = ranks(run_pattern, ONE_WAY, 1 << 20, 1, 0)
    name = (0, 1, str(F32))
    damaged = results[1][0][name]
    damaged.view(torch.uint8)[2, 9] ^= 1
    assert checksum(damaged) != results[2][1].checksums[name]


@pytest.mark.parametrize(
    "other",
    [
        ONE_WAY.copies[:1],
        (ONE_WAY.copies[0]._replace(to_col=3), ONE_WAY.copies[1]),
        (ONE_WAY.copies[0]._replace(dtype=torch.float16), ONE_WAY.copies[1]),
        ONE_WAY.copies[::-1],
        (),
    ],
    ids=["a box less", "another place", "another dtype", "another order", "nothing"],
)
def test_ranks_that_disagree_are_named_on_all_ranks(ranks, other):
    plans = [ONE_WAY, ONE_WAY, Pattern(4, other), ONE_WAY]
    found = ranks(disagree, plans)
    assert all("disagree about what they exchange" in message for message in found)
    assert all(
        "1" in message.split("disagree")[0] and "2" in message.split("disagree")[0] for message in found
    )


def test_where_boxes_lie_in_the_source_is_the_senders_business(ranks):
    moved = tuple(copy._replace(row=0, col=0) for copy in ONE_WAY.copies)
    assert ranks(disagree, [ONE_WAY, ONE_WAY, Pattern(4, moved), ONE_WAY]) == [None] * 4


def test_tensors_that_do_not_fit_are_refused_before_anything_is_sent(ranks):
    both_ways = Pattern(4, tuple(Copy(r, (r + 1) % 4, 0, 0, 0, 2, 2, 0, BF16) for r in range(4)))
    for missing, other, no_source in ranks(refused, both_ways):
        assert "was not given (0, " in missing
        assert "is torch.float64, and torch.bfloat16 arrives" in other
        assert "was not given 0, 1, 2" in no_source


def test_sources_may_lie_elsewhere_in_the_next_run_and_have_another_dtype(ranks):
    for rank, (first, second) in enumerate(ranks(other_sources, ONE_WAY)):
        expected = ONE_WAY.expected(rank)
        assert all(torch.equal(first[name], value) for name, value in expected.items())
        assert all(torch.equal(second[name], value.bfloat16().to(value)) for name, value in expected.items())


def planned(job, engine_ranks, dtype):
    """(sides of every rank, transfers that need no message); trainer rank i writes engine rank i."""
    names = {place: rank for rank, place in enumerate(engine_ranks)}
    sides = [({}, {}) for _ in engine_ranks]
    local = [[] for _ in engine_ranks]
    pairs = {}
    for transfer in plan(job):
        writer = names[transfer.target, transfer.target_rank]
        if writer == transfer.source_rank:
            local[writer].append(transfer)
        else:
            pairs.setdefault((transfer.source_rank, writer), []).append(transfer)
    for (sender, writer), transfers in pairs.items():
        table = tabulate(transfers)
        side = Side(table, (dtype,) * len(table.targets))
        sides[sender][0][writer] = sides[writer][1][sender] = side
    return sides, local


def test_a_plan_between_real_layouts_is_carried_out(ranks):
    spec = tiny()
    trainer, engine = MegatronLayout(spec, tp=2, pp=2), SGLangLayout(spec, tp=2)
    job = Job(trainer, (engine, engine))
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    sides, local = planned(job, places, BF16)
    hf = hf_tensors(spec)
    sources = [megatron_shard(spec, hf, tp=2, pp=2, rank_tp=rank % 2, rank_pp=rank // 2) for rank in range(4)]
    shapes = [
        {(index, rank, name): shard.shape for name, shard in engine.shards(rank).items()}
        for index, rank in places
    ]
    results = ranks(run_sides, sides, sources, shapes, BF16)
    for rank, (targets, _) in enumerate(results):
        expected = {name: torch.zeros_like(value) for name, value in targets.items()}
        for source in range(4):
            table = tabulate(
                plan(job, source_rank=source, target=places[rank][0], target_rank=places[rank][1])
            )
            copy(table, [sources[source][x] for x in table.sources], [expected[x] for x in table.targets])
        table = tabulate(local[rank])
        copy(table, [sources[rank][x] for x in table.sources], [targets[x] for x in table.targets])
        assert all(torch.equal(targets[name], value) for name, value in expected.items())


@pytest.mark.parametrize("on_host", ["memory", "messages"])
@pytest.mark.parametrize("loss, least_s", [("kill", 0.0), ("stop", 2.0)])
def test_a_peer_that_is_lost_is_named_and_nobody_hangs(loss, least_s, on_host):
    with GlooRanks(3, timeout_s=4.0) as three:
        three(build_all_to_all, 500, on_host)
        three.begin(run_until_lost)
        time.sleep(0.5)
        begin = time.monotonic()
        getattr(three, loss)(2)
        messages = [three.answer(rank) for rank in (0, 1)]
        assert least_s <= time.monotonic() - begin < 60
    named = [message.partition("lost contact with rank ")[2].partition("  (")[0] for message in messages]
    assert any("2" in names.split(", ") for names in named) and all(named)
