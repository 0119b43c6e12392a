"""What the ranks of a reward model are told of answers that lie in several blocks."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.types import Group, Prompt, Trajectory
from hybridrl.workers.reward_model_ranks import _partitioned

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=8)


@given(lengths=LENGTHS, num_ranks=st.integers(1, 4), limit=st.integers(9, 30))
def test_every_answer_is_scored_once(lengths: list[list[int]], num_ranks: int, limit: int) -> None:
    """Groups take turns in two blocks."""
    blocks = ["first", "second"]
    used, groups = [0, 0], []
    for g, group in enumerate(lengths):
        rows = range(used[g % 2], used[g % 2] + len(group))
        used[g % 2] += len(group)
        answers = [Trajectory(row, 1, n - 1, n - 1, "stop", 0) for row, n in zip(rows, group, strict=True)]
        groups.append(Group(Prompt(f"train/{g}", (1,), {}), answers, blocks[g % 2]))
    partitioning = {"num_ranks": num_ranks, "microbatch_tokens": limit, "attention_length": math.inf}
    batch = _partitioned(groups, blocks, partitioning)
    count = sum(map(len, lengths))
    placed = list(zip(batch.block_N.tolist(), batch.row_N.tolist(), strict=True))
    assert placed == [(g % 2, t.row) for g, group in enumerate(groups) for t in group.trajectories]
    (minibatch,) = batch.minibatches
    assert len(minibatch.rows) == num_ranks
    assert sorted(n for rank in minibatch.rows for rows in rank for n in rows) == list(range(count))
    length_N = np.array([n for group in lengths for n in group])
    assert all(length_N[list(rows)].sum() <= limit for rank in minibatch.rows for rows in rank)
