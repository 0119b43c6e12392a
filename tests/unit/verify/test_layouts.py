"""Names of layouts, and that every way to deal a batch deals all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.errors import UserError
from hybridrl.verify.layouts import REFERENCE, Row, default_layouts, name_of, parse, partition, rows

sizes = st.integers(1, 4)


@given(tp=sizes, cp=sizes, pp=sizes, vpp=sizes, dp=sizes, sp=st.booleans())
def test_a_name_is_read_as_it_was_written(tp, cp, pp, vpp, dp, sp):
    parallel = parse(f"tp{tp}cp{cp}pp{pp}vpp{vpp}dp{dp}{'sp' if sp else ''}")
    assert (parallel.tp, parallel.cp, parallel.pp, parallel.vpp, parallel.dp) == (tp, cp, pp, vpp, dp)
    assert parallel.sp is (True if sp else None)
    if name := name_of(parallel):
        assert parse(name) == parallel


@pytest.mark.parametrize("name", ["dp4shard2", "cp2keys", "tp2cp2heads", "cp2dp2shard1"])
def test_names_of_copies_and_exchanges(name):
    assert parse(name).num_ranks == 4 if name != "cp2keys" else 2
    assert parse(name_of(parse(name))) == parse(name)


def test_experts_bring_the_replicas_that_they_need():
    assert parse("ep2").num_ranks == parse("tp2ep2").num_ranks == 2
    assert parse("ep2etp2").num_ranks == 4
    assert parse("ep2dp4").dp == 4


@pytest.mark.parametrize("name", ["", "tp", "tp0", "xp2", "tp2-pp2", "tp2tp2", "spsp", "2tp", "cp2headskeys"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="no layout"):
        parse(name)


ALONE = {"microbatches", "packing", "recompute", "tp", "cp", "dp"}


@pytest.mark.parametrize(
    ("backend", "alone", "with_others"),
    [
        ("megatron", ALONE | {"pp"}, {"order", "sp", "vpp", "ep", "etp", "backend"}),
        ("fsdp", ALONE, {"order", "shard", "backend"}),
    ],
)
def test_the_default_rows_change_every_axis_alone_or_with_ones_that_are_tested_alone(
    backend, alone, with_others
):
    found = rows(default_layouts(backend))
    by_itself = {axis for row in found if len(row.axes) == 1 for axis in row.axes}
    assert by_itself == alone
    assert {axis for row in found for axis in row.axes} - alone == with_others
    for axis in with_others - {"etp"}:
        assert any(row.axes - alone == {axis} for row in found), axis
    assert len({row.name for row in found}) == len(found)


def test_a_layout_may_be_of_another_backend():
    alone, packed = rows(["fsdp:dp4shard2"])[-2:]
    assert alone.backend == packed.backend == "fsdp"
    assert alone.parallel == parse("dp4shard2") and alone.axes == {"backend", "dp", "shard"}
    assert rows(["dp2"])[-1].backend is None
    with pytest.raises(UserError, match="no backend 'fsdp2'"):
        rows(["fsdp2:dp2"])


@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=20),
    st.sampled_from([REFERENCE, *rows(["dp2", "dp3"])]),
    st.integers(0, 30),
)
def test_every_sequence_is_computed_once_and_ranks_have_equally_many_microbatches(lengths, row, first):
    members = np.arange(first, first + len(lengths))
    length_N = np.concatenate([np.zeros(first, int), lengths])
    partitioned = partition(row, members, length_N)
    assert len(partitioned) == row.parallel.dp
    assert len({len(rank) for rank in partitioned}) == 1
    assert sorted(n for rank in partitioned for microbatch in rank for n in microbatch) == members.tolist()


def test_the_reference_takes_one_sequence_at_a_time_in_order():
    assert partition(REFERENCE, np.array([4, 5, 6]), np.full(7, 9)) == (((4,), (5,), (6,)),)


def test_rows_of_a_layout_are_one_at_a_time_and_packed():
    plain, packed = rows(["tp2"])[-2:]
    assert isinstance(plain, Row) and plain.axes == {"tp"} and plain.partition == "single"
    assert packed.axes == {"tp", "packing"} and packed.parallel == plain.parallel
