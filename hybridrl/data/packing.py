"""Shares the trajectories of a batch out over optimizer steps, data-parallel ranks and microbatches.

Shape letters: N trajectories of the batch. A *bin* is one microbatch on one rank. Trajectories go, longest
first, into the emptiest bin (Graham's LPT rule): bins then differ by at most one trajectory, and the fullest
is at most 4/3 of the best possible. Cost is counted in tokens, prompt included.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.errors import ConfigError, DataError


def plan_minibatches(
    batch: Batch, *, minibatch_prompts: int, epochs: int, num_ranks: int, microbatch_tokens: int, seed: int
) -> list[Minibatch]:
    """Minibatches of whole groups, in a new order at each epoch. The same arguments give the same plan.

    Args:
        minibatch_prompts: groups of one optimizer step; the last step of an epoch takes what is left.
        epochs: passes over the batch.
        num_ranks: data-parallel size.
        microbatch_tokens: limit of one microbatch on one rank.
        seed: of the run; the order depends on it, the batch's step and the epoch.

    Raises:
        ConfigError: a trajectory is longer than microbatch_tokens.
        DataError: every trajectory was dropped.
    """
    longest = int(batch.length_N.max(initial=0))
    if longest > microbatch_tokens:
        raise ConfigError(
            f"actor.microbatch_tokens = {microbatch_tokens}, a trajectory of step {batch.step} has {longest}",
            where="a microbatch holds whole trajectories",
            fix=f"actor.microbatch_tokens={longest} or more",
        )
    rows_G = _rows_of_groups(batch)
    found: list[Minibatch] = []
    for epoch in range(epochs):
        order_G = np.random.default_rng([seed, batch.step, epoch]).permutation(len(rows_G))
        for at in range(0, len(order_G), minibatch_prompts):
            rows = np.sort(np.concatenate([rows_G[g] for g in order_G[at : at + minibatch_prompts]]))
            if len(rows):
                found.append(_minibatch(len(found), rows, batch, num_ranks, microbatch_tokens))
    if not found:
        raise DataError(
            f"all {len(batch)} answers of step {batch.step} were cut at the token limit, nothing is left",
            where="algorithm.drop_truncated leaves them out",
            fix="raise rollout.max_response_tokens",
        )
    return found


def _rows_of_groups(batch: Batch) -> list[np.ndarray]:
    """Trajectories of each group that are trained on."""
    ends = np.cumsum([len(group.trajectories) for group in batch.groups])
    rows_G = np.split(np.arange(len(batch)), ends[:-1])
    if batch.dropped_N is None:
        return rows_G
    return [rows[~batch.dropped_N[rows]] for rows in rows_G]


def _minibatch(
    index: int, rows: np.ndarray, batch: Batch, num_ranks: int, microbatch_tokens: int
) -> Minibatch:
    trained = batch.trained_N[rows]
    return Minibatch(
        index,
        _share_out(rows, batch.length_N[rows], num_ranks, microbatch_tokens),
        num_tokens=int(trained.sum()),
        num_sequences=int(np.count_nonzero(trained)),
    )


def _share_out(
    rows: np.ndarray, length: np.ndarray, num_ranks: int, microbatch_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """rows[rank][microbatch], the fullest microbatch first: a lack of memory shows at once."""
    longest_first = np.argsort(-length, kind="stable")
    order, cost = rows[longest_first].tolist(), length[longest_first].tolist()
    num_microbatches = max(1, -(-sum(cost) // (num_ranks * microbatch_tokens)))
    while (bins := _fill(cost, num_ranks * num_microbatches, microbatch_tokens)) is None:
        num_microbatches += 1
    loads = [sum(cost[i] for i in members) for members in bins]
    return tuple(
        tuple(tuple(sorted(order[i] for i in bins[b])) for b in owned) for owned in _deal(loads, num_ranks)
    )


def _fill(cost: Sequence[int], num_bins: int, limit: int) -> list[list[int]] | None:
    """Indices of the costs in each bin, each cost into the emptiest; None where that exceeds the limit.

    Args:
        cost: descending.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, b) for b in range(num_bins)]
    for i, c in enumerate(cost):
        load, b = heap[0]
        if load + c > limit:
            return None
        bins[b].append(i)
        heapq.heapreplace(heap, (load + c, b))
    return bins


def _deal(loads: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Bins of each rank: in every round the fullest bin left goes to the rank that has least."""
    fullest_first = sorted(range(len(loads)), key=lambda b: -loads[b])
    owned: list[list[int]] = [[] for _ in range(num_ranks)]
    total = [0] * num_ranks
    for at in range(0, len(loads), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda rank: total[rank])
        for rank, b in zip(ranks, fullest_first[at : at + num_ranks]):
            owned[rank].append(b)
            total[rank] += loads[b]
    return owned
