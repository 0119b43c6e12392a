"""Every trajectory once an epoch, no microbatch over its budget, ranks and microbatches even."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrl.batch import Batch
from hybridrl.data import packing
from hybridrl.data.packing import pack_minibatches
from hybridrl.errors import ConfigError
from hybridrl.types import Group, Prompt, Trajectory


def batch_of(lengths, *, step=1, trained=None, pictures=()):
    """A batch with the given trajectory lengths, per group, whose prompts show these pictures."""
    groups = []
    for g, members in enumerate(lengths):
        trajectories = [
            Trajectory(
                row=i,
                prompt_tokens=1,
                response_tokens=n - 1,
                trained_tokens=n - 1 if trained is None else trained[g][i],
                finish="stop",
                version=0,
                reward=0.0,
            )
            for i, n in enumerate(members)
        ]
        groups.append(Group(Prompt(f"train/{g}", (1,), {}, pictures=pictures), trajectories, block=None))
    return Batch.pack(step, groups)


def plan(
    batch,
    *,
    minibatch_prompts=2,
    epochs=1,
    num_ranks=1,
    microbatch_tokens=100,
    seed=0,
    attention_length=math.inf,
    share_prompts=False,
):
    return pack_minibatches(
        batch,
        minibatch_prompts=minibatch_prompts,
        epochs=epochs,
        num_ranks=num_ranks,
        microbatch_tokens=microbatch_tokens,
        seed=seed,
        attention_length=attention_length,
        share_prompts=share_prompts,
    )


def members(minibatch):
    return [i for rank in minibatch.rows for microbatch in rank for i in microbatch]


lengths = st.lists(st.lists(st.integers(2, 100), min_size=1, max_size=9), min_size=1, max_size=12)
settings_of_a_plan = st.fixed_dictionaries(
    {
        "minibatch_prompts": st.integers(1, 5),
        "epochs": st.integers(1, 3),
        "num_ranks": st.integers(1, 5),
        "microbatch_tokens": st.integers(100, 300),
        "seed": st.integers(0, 10),
    }
)


@settings(max_examples=150, deadline=None)
@given(lengths, settings_of_a_plan)
def test_a_plan_is_a_partition_within_its_budget(lengths, options):
    batch = batch_of(lengths)
    found = plan(batch, **options)
    per_epoch = -(-len(lengths) // options["minibatch_prompts"])
    assert [mb.index for mb in found] == list(range(per_epoch * options["epochs"]))
    for epoch in range(options["epochs"]):
        part = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for mb in part for i in members(mb)) == list(range(len(batch)))
    for mb in found:
        loads = [[int(batch.length_N[list(m)].sum()) for m in rank] for rank in mb.rows]
        rows = members(mb)
        longest = int(batch.length_N[rows].max())
        assert len(mb.rows) == options["num_ranks"] and len({len(rank) for rank in mb.rows}) == 1
        for load, rank in zip(loads, mb.rows, strict=True):
            assert max(load) <= options["microbatch_tokens"]
            assert max(load) - min(load) <= longest
            assert sum(map(len, rank)) < len(rank) or min(load) > 0
        totals = [sum(rank) for rank in loads]
        assert max(totals) - min(totals) <= longest
        assert mb.idle_share == pytest.approx(1 - sum(totals) / (len(totals) * max(totals)), abs=1e-12)
        assert mb.num_tokens == batch.trained_N[rows].sum()
        assert mb.num_sequences == np.count_nonzero(batch.trained_N[rows])


@settings(max_examples=50, deadline=None)
@given(lengths, settings_of_a_plan)
def test_a_minibatch_holds_whole_groups(lengths, options):
    batch = batch_of(lengths)
    for mb in plan(batch, **options):
        groups = set(batch.group_N[members(mb)].tolist())
        assert len(groups) <= options["minibatch_prompts"]
        assert sorted(members(mb)) == [i for i in range(len(batch)) if batch.group_N[i] in groups]


def test_each_epoch_and_each_step_has_its_own_order_and_one_seed_one_plan():
    lengths = [[10, 20]] * 16
    one = plan(batch_of(lengths), epochs=2)
    assert one == plan(batch_of(lengths), epochs=2)
    assert {tuple(members(mb)) for mb in one[:8]} != {tuple(members(mb)) for mb in one[8:]}
    assert one[:8] != plan(batch_of(lengths, step=2), epochs=1)
    assert one[:8] != plan(batch_of(lengths), epochs=1, seed=1)
    assert one[:8] == plan(batch_of(lengths), epochs=1)


@settings(max_examples=100, deadline=None)
@given(lengths, settings_of_a_plan, st.floats(1.0, 500.0))
def test_with_the_cost_of_attention_ranks_differ_by_at_most_one_trajectory(lengths, options, attention):
    batch = batch_of(lengths)
    cost_N = batch.length_N * (1 + batch.length_N / attention)
    for mb in plan(batch, **options, attention_length=attention):
        busy = [cost_N[[i for m in rank for i in m]].sum() for rank in mb.rows]
        assert max(busy) - min(busy) <= cost_N[members(mb)].max() * (1 + 1e-9)
        assert mb.idle_share == pytest.approx(1 - np.mean(busy) / max(busy), abs=1e-9)
        tokens = [batch.length_N[list(m)].sum() for rank in mb.rows for m in rank]
        assert max(tokens) <= options["microbatch_tokens"]


def test_a_long_trajectory_counts_for_more_than_its_tokens():
    batch = batch_of([[60, 20, 20, 20, 20]])
    [by_tokens] = plan(batch, num_ranks=2)
    [by_cost] = plan(batch, num_ranks=2, attention_length=10.0)
    assert sorted(len(rank) for rank in _owned(by_tokens)) == [2, 3]
    assert sorted(len(rank) for rank in _owned(by_cost)) == [1, 4]


def _owned(minibatch):
    return [[i for microbatch in rank for i in microbatch] for rank in minibatch.rows]


@pytest.mark.parametrize("attention", [math.inf, 24_576.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_long_tail_leaves_ranks_idle_for_less_than_a_twentieth_of_their_time(attention, seed):
    draw = np.random.default_rng(seed)
    drawn = np.minimum(draw.lognormal(6.5, 0.9, (64, 8)), 8192).astype(int) + 200
    [mb] = plan(
        batch_of(drawn.tolist()),
        minibatch_prompts=64,
        num_ranks=8,
        microbatch_tokens=16_384,
        attention_length=attention,
    )
    assert mb.idle_share < 0.05
    least = -(-drawn.sum() // (8 * 16_384))
    assert len(mb.rows[0]) <= least + 1


def test_as_few_microbatches_as_the_tokens_of_the_fullest_rank_allow():
    batch = batch_of([[50, 50, 30, 70], [90, 60, 40]])
    [mb] = plan(batch, microbatch_tokens=120, num_ranks=2)
    assert [len(rank) for rank in mb.rows] == [2, 2]


def test_fewer_trajectories_than_ranks_leave_some_ranks_empty():
    [mb] = plan(batch_of([[5], [7]]), num_ranks=4)
    assert sorted(rank[0] for rank in mb.rows) == [(), (), (0,), (1,)]


def test_the_fullest_microbatch_of_a_rank_comes_first():
    batch = batch_of([[90, 80, 30, 20, 5, 4]])
    [mb] = plan(batch, microbatch_tokens=100)
    loads = [int(batch.length_N[list(m)].sum()) for m in mb.rows[0]]
    assert loads == sorted(loads, reverse=True)


def test_answers_without_trained_tokens_are_carried_but_not_counted():
    [mb] = plan(batch_of([[10, 10], [10]], trained=[[0, 4], [5]]))
    assert sorted(members(mb)) == [0, 1, 2]
    assert (mb.num_tokens, mb.num_sequences) == (9, 2)


def shares(minibatch, batch):
    """In how many microbatches each group is."""
    found = {}
    for rank in minibatch.rows:
        for microbatch in rank:
            for group in {int(batch.group_N[i]) for i in microbatch}:
                found[group] = found.get(group, 0) + 1
    return found


PICTURE = (b"a picture",)


@given(lengths, settings_of_a_plan)
def test_groups_with_pictures_are_a_plan_like_any_other(lengths, options):
    batch, text = (batch_of(lengths, pictures=shown) for shown in (PICTURE, ()))
    for minibatch, other in zip(plan(batch, **options), plan(text, **options), strict=True):
        assert sorted(members(minibatch)) == sorted(members(other))
        for rank in minibatch.rows:
            assert len(rank) == len(minibatch.rows[0])
            assert all(sum(batch.length_N[list(m)]) <= options["microbatch_tokens"] for m in rank)
        kept, alone = (
            [sum(batch.length_N[i] for m in rank for i in m) for rank in one.rows]
            for one in (minibatch, other)
        )
        one_more = sum(alone) / len(alone) + max(batch.length_N[members(other)])
        assert max(kept) <= max(1.05 * max(alone), one_more)


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_a_group_with_pictures_is_in_one_microbatch_if_that_can_hold_it(num_ranks):
    draw = np.random.default_rng(3)
    lengths = [draw.integers(40, 60, 8).tolist() for _ in range(32)]
    options = {"minibatch_prompts": 32, "num_ranks": num_ranks, "microbatch_tokens": 1000}
    text, batch = batch_of(lengths), batch_of(lengths, pictures=PICTURE)
    assert set(shares(plan(batch, **options)[0], batch).values()) == {1}
    assert min(shares(plan(text, **options)[0], text).values()) > 1


def test_a_group_that_no_microbatch_can_hold_is_in_as_few_as_possible():
    batch = batch_of([[30] * 8] * 4, pictures=PICTURE)
    (minibatch,) = plan(batch, minibatch_prompts=4, microbatch_tokens=130)
    assert set(shares(minibatch, batch).values()) == {2} and len(minibatch.rows[0]) == 8


def test_groups_are_divided_if_ranks_would_wait_for_each_other():
    batch = batch_of([[10] * 8] * 9, pictures=PICTURE)
    (minibatch,) = plan(batch, minibatch_prompts=9, num_ranks=8, microbatch_tokens=1000)
    assert [sum(len(m) for m in rank) for rank in minibatch.rows] == [9] * 8
    assert sum(shares(minibatch, batch).values()) <= 9 + 8 - 1


def test_a_trajectory_longer_than_a_microbatch_names_both_numbers():
    with pytest.raises(
        ConfigError, match=r"microbatch_tokens = 64, a trajectory of step 3 has 65.*=65 or more"
    ):
        plan(batch_of([[10, 65]], step=3), microbatch_tokens=64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 8), st.sampled_from([math.inf, 30.0]))
def test_each_sequence_goes_to_the_least_costly_microbatch_with_room(found, count, attention):
    length = np.array(sorted(found, reverse=True), np.int64)
    cost = length * (1.0 + length / attention)
    packed = packing._pack(list(range(len(length))), length, cost, count, 120)
    expected = [[] for _ in range(count)]
    for i in range(len(length)):
        room = [bin_ for bin_ in expected if length[[*bin_, i]].sum() <= 120]
        if not room:
            assert packed is None
            return
        min(room, key=lambda bin_: sum(cost[j] for j in bin_)).append(i)
    assert packed == sorted(expected, key=lambda bin_: -sum(cost[j] for j in bin_))


@settings(max_examples=60, deadline=None)
@given(lengths, settings_of_a_plan, st.integers(0, 2**32))
def test_still_trajectories_are_not_computed_and_yet_counted(lengths, options, chosen):
    batch = batch_of(lengths)
    whole = plan(batch, **options)
    batch.still_N = np.random.default_rng(chosen).random(len(batch)) < 0.5
    for minibatch, every in zip(plan(batch, **options), whole, strict=True):
        computed = members(minibatch)
        assert (minibatch.num_tokens, minibatch.num_sequences) == (every.num_tokens, every.num_sequences)
        moving = sorted(i for i in members(every) if not batch.still_N[i])
        assert sorted(computed) == moving if moving else len(computed) == 1
        if minibatch.computed_tokens is None:
            assert len(computed) == len(members(every))
        else:
            assert minibatch.computed_tokens == batch.trained_N[computed].sum()


def prompted(prompt, lengths):
    """A batch whose prompts have this many tokens."""
    batch = batch_of(lengths)
    for trajectory in batch.trajectories:
        trajectory.response_tokens -= prompt - trajectory.prompt_tokens
        trajectory.prompt_tokens = prompt
    return Batch.pack(1, batch.groups)


def test_a_shared_prompt_counts_once_in_a_microbatch() -> None:
    batch = prompted(21, [[30] * 4] * 2)  # 20 shared tokens and 4 x 10 others: 60 a group
    [shared] = plan(batch, microbatch_tokens=60, share_prompts=True)
    assert [sorted(m) for m in sorted(shared.rows[0])] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    [whole] = plan(batch, microbatch_tokens=60)
    assert len(whole.rows[0]) == 4 and shared.num_tokens == whole.num_tokens


def test_a_group_that_exceeds_a_microbatch_is_divided_by_what_it_computes() -> None:
    batch = prompted(21, [[30] * 8])  # 20 and 8 x 10 tokens
    [shared] = plan(batch, minibatch_prompts=1, microbatch_tokens=60, share_prompts=True)
    assert sorted(map(len, shared.rows[0])) == [4, 4]
    assert sorted(members(shared)) == list(range(8))
