"""The same optimizer steps on other ranks; columns from ranks of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.batch import Minibatch
from hybridrl.workers.columns import partitioned


@given(
    lengths=st.lists(st.integers(1, 9), min_size=4, max_size=30),
    num_ranks=st.integers(1, 4),
    limit=st.integers(9, 40),
)
def test_an_optimizer_step_keeps_its_trajectories(lengths: list[int], num_ranks: int, limit: int) -> None:
    length_N = np.array(lengths, np.int64)
    chosen = list(range(0, len(lengths), 2))
    minibatch = Minibatch(1, ((tuple(chosen[::2]), tuple(chosen[1::2])),), num_tokens=7, num_sequences=3)
    other = partitioned(
        minibatch, length_N, num_ranks=num_ranks, microbatch_tokens=limit, attention_length=float("inf")
    )
    assert (other.index, other.num_tokens, other.num_sequences) == (1, 7, 3)
    assert sorted(n for rank in other.rows for rows in rank for n in rows) == chosen
    assert len(other.rows) == num_ranks and len({len(rank) for rank in other.rows}) == 1
    assert all(length_N[list(rows)].sum() <= limit for rank in other.rows for rows in rank)
