"""Partitions the trajectories of a batch over optimizer steps, data-parallel ranks and microbatches.

Ranks are balanced first: trajectories go, most costly first, to the rank with the least work (Graham's LPT
rule), so that ranks differ by less than one trajectory. Then each rank packs its trajectories into
microbatches, the same number on every rank. Cost is time: tokens, and their square for attention. The limit
of a microbatch is memory: tokens, prompt included.

Trajectories whose prompt has pictures are kept together, group by group: a microbatch encodes a picture once,
however many of its trajectories show it. So are all trajectories if prompts are shared: a microbatch then has
a prompt once, and counts it once. A group is divided if it exceeds a microbatch, or if ranks would wait for
each other.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.errors import ConfigError, DataError


def pack_minibatches(
    batch: Batch,
    *,
    minibatch_prompts: int,
    epochs: int,
    num_ranks: int,
    microbatch_tokens: int,
    seed: int,
    attention_length: float = math.inf,
    share_prompts: bool = False,
) -> list[Minibatch]:
    """Minibatches of whole groups, in a new order at each epoch. The same arguments give the same plan.

    Args:
        minibatch_prompts: groups of one optimizer step; the last step of an epoch takes the remaining ones.
        epochs: passes over the batch.
        num_ranks: data-parallel size.
        microbatch_tokens: limit of one microbatch on one rank.
        seed: seed of the run; the order depends on it, the batch's step and the epoch.
        attention_length: sequence length at which attention costs as much as the weights, by models/cost.py.
        share_prompts: a microbatch computes each prompt once.

    Raises:
        ConfigError: a trajectory is longer than microbatch_tokens.
        DataError: every trajectory was dropped.
    """
    packed_N = _packed(batch)
    longest = int(packed_N.max(initial=0))
    if longest > microbatch_tokens:
        raise ConfigError(
            f"actor.microbatch_tokens = {microbatch_tokens}, a trajectory of step {batch.step} has {longest}",
            where="a microbatch holds whole trajectories",
            fix=f"actor.microbatch_tokens={longest} or more",
        )
    rows_G = _rows_of_groups(batch)
    is_grouped = share_prompts or any(group.prompt.pictures for group in batch.groups)
    shared_N = _prompts(batch) if share_prompts else np.zeros(len(batch), np.int64)
    still_N = np.zeros(len(batch), bool) if batch.still_N is None else batch.still_N
    found: list[Minibatch] = []
    for epoch in range(epochs):
        order_G = np.random.default_rng([seed, batch.step, epoch]).permutation(len(rows_G))
        for at in range(0, len(order_G), minibatch_prompts):
            rows = np.sort(np.concatenate([rows_G[g] for g in order_G[at : at + minibatch_prompts]]))
            if len(rows):
                computed = rows[~still_N[rows]]
                if not len(computed):  # an optimizer step has at least one microbatch
                    computed = rows[[packed_N[rows].argmin()]]
                parts = partition_rows(
                    computed,
                    packed_N[computed],
                    num_ranks=num_ranks,
                    microbatch_tokens=microbatch_tokens,
                    attention_length=attention_length,
                    together=batch.group_N[computed] if is_grouped else None,
                    shared=shared_N[computed],
                )
                found.append(_minibatch(len(found), rows, computed, parts, batch, attention_length))
    if not found:
        raise DataError(
            f"every answer of step {batch.step} was truncated at the token limit, 0 of {len(batch)} are left",
            where="algorithm.drop_truncated leaves them out",
            fix="raise rollout.max_response_tokens",
        )
    return found


def _packed(batch: Batch) -> np.ndarray:
    """Tokens of the longest form in which a trajectory is computed, with its hint; int64 [N]."""
    hint_G = [len(g.prompt.hint.token_ids) if g.prompt.hint else 0 for g in batch.groups]
    return batch.length_N + np.array(hint_G, np.int64)[batch.group_N]


def _prompts(batch: Batch) -> np.ndarray:
    """Tokens of each trajectory that a microbatch has once for all answers to its prompt: the prompt without
    its last token, with which every answer begins; int64 [N]."""
    return np.array([max(0, t.prompt_tokens - 1) for t in batch.trajectories], np.int64)


def _rows_of_groups(batch: Batch) -> list[np.ndarray]:
    """Row numbers of the trajectories of each group that are trained on."""
    ends = np.cumsum([len(group.trajectories) for group in batch.groups])
    rows_G = np.split(np.arange(len(batch)), ends[:-1])
    if batch.dropped_N is None:
        return rows_G
    return [rows[~batch.dropped_N[rows]] for rows in rows_G]


def _minibatch(
    index: int,
    rows: np.ndarray,
    computed: np.ndarray,
    shared: tuple[tuple[tuple[int, ...], ...], ...],
    batch: Batch,
    attention_length: float,
) -> Minibatch:
    """
    Args:
        rows: trajectories of the minibatch.
        computed, shared: those of them that are computed, and where.
    """
    trained = batch.trained_N[rows]
    costs = _cost(_packed(batch)[computed], attention_length)
    cost = dict(zip(computed.tolist(), costs.tolist(), strict=True))
    busy = [sum(cost[n] for microbatch in rank for n in microbatch) for rank in shared]
    return Minibatch(
        index,
        shared,
        num_tokens=int(trained.sum()),
        num_sequences=int(np.count_nonzero(trained)),
        computed_tokens=int(batch.trained_N[computed].sum()) if len(computed) < len(rows) else None,
        idle_share=1 - sum(busy) / (len(shared) * max(busy)),
    )


def partition_rows(
    rows: np.ndarray,
    length: np.ndarray,
    *,
    num_ranks: int,
    microbatch_tokens: int,
    attention_length: float = math.inf,
    together: np.ndarray | None = None,
    shared: np.ndarray | None = None,
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Row numbers by [rank][microbatch]. The most costly microbatch of a rank is first, so that a lack of
    memory shows at once.

    Args:
        rows: numbers of trajectories, which the result consists of.
        length: tokens of each; none above microbatch_tokens.
        together: rows with the same number share a microbatch if it can hold them and ranks stay balanced.
            None: every row is on its own.
        shared: tokens of each that rows of the same number have once in a microbatch; None: none.
    """
    longest_first = np.argsort(-length, kind="stable")
    shared = np.zeros_like(length) if shared is None else shared[longest_first]
    rows, length = rows[longest_first], length[longest_first]
    cost = _cost(length, attention_length)
    if together is None:
        bins = _packed_ranks(_balance(cost.tolist(), num_ranks), length, cost, microbatch_tokens)
        return tuple(tuple(tuple(sorted(rows[bin_].tolist())) for bin_ in rank) for rank in bins)
    pieces: list[np.ndarray] = []
    owned: list[list[int]] = []
    for parts in _balanced_groups(together[longest_first], cost, num_ranks):
        own = [piece for part in parts for piece in _divided(part, length, shared, microbatch_tokens)]
        own.sort(key=lambda piece: -cost[piece].sum())
        owned.append(list(range(len(pieces), len(pieces) + len(own))))
        pieces += own
    length = np.array([_tokens(piece, length, shared) for piece in pieces])
    cost = np.array([cost[piece].sum() for piece in pieces])
    bins = _packed_ranks(owned, length, cost, microbatch_tokens)
    return tuple(
        tuple(tuple(sorted(int(n) for i in bin_ for n in rows[pieces[i]])) for bin_ in rank) for rank in bins
    )


def _packed_ranks(
    owned: Sequence[Sequence[int]], length: np.ndarray, cost: np.ndarray, limit: int
) -> list[list[list[int]]]:
    """What each rank has in microbatches, as few as the limit allows, the same number on every rank."""
    count = max(1, *(-(-int(length[own].sum()) // limit) for own in owned))
    while (packed := _pack_all(owned, length, cost, count, limit)) is None:
        count += 1
    return packed


def _balanced_groups(together: np.ndarray, cost: np.ndarray, num_ranks: int) -> list[list[np.ndarray]]:
    """The groups, or parts of groups, of each rank, as indices of rows.

    Whole groups go to ranks if the busiest one then has little more to do than if rows were on their own.
    Otherwise all rows lie end to end, group by group, and each rank takes an equal part: a rank
    shares a group with the one before it at most.
    """
    groups = [np.flatnonzero(together == group) for group in np.unique(together)]
    groups.sort(key=lambda group: -cost[group].sum())
    costs = np.array([cost[group].sum() for group in groups])
    whole, alone = _balance(costs.tolist(), num_ranks), _balance(cost.tolist(), num_ranks)
    if _busiest(whole, costs) <= _MOST_BUSIER * _busiest(alone, cost):
        return [[groups[i] for i in own] for own in whole]
    order = np.concatenate(groups)
    middle = np.cumsum(cost[order]) - cost[order] / 2
    rank = np.minimum((middle * num_ranks / cost.sum()).astype(np.int64), num_ranks - 1)
    cuts = np.flatnonzero(np.diff(rank) | np.diff(together[order])) + 1
    found: list[list[np.ndarray]] = [[] for _ in range(num_ranks)]
    for part, first in zip(np.split(order, cuts), [0, *cuts.tolist()], strict=True):
        found[rank[first]].append(part)
    return found


def _busiest(owned: Sequence[Sequence[int]], cost: np.ndarray) -> float:
    """The cost of the rank that has most to do."""
    return max(float(cost[own].sum()) for own in map(list, owned))


def _tokens(piece: np.ndarray, length: np.ndarray, shared: np.ndarray) -> int:
    """Tokens that rows of one group take in a microbatch."""
    return int(length[piece].sum() - shared[piece].sum() + shared[piece].max(initial=0))


def _divided(group: np.ndarray, length: np.ndarray, shared: np.ndarray, limit: int) -> list[np.ndarray]:
    """A group in as few pieces of like length as it takes for none to exceed the limit."""
    parts = max(1, -(-_tokens(group, length, shared) // limit))
    while any(_tokens(group[part::parts], length, shared) > limit for part in range(parts)):
        parts += 1
    return [group[part::parts] for part in range(parts)]


_MOST_BUSIER = 1.05
"""How much more the busiest rank may have to do so that all groups stay whole."""


def _cost(length: np.ndarray, attention_length: float) -> np.ndarray:
    """Cost of each sequence: the number of tokens in short sequences that take the same time."""
    return length * (1.0 + length / attention_length)


def _balance(cost: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Indices of the costs that each rank gets; `cost` is in descending order."""
    owned: list[list[int]] = [[] for _ in range(num_ranks)]
    heap = [(0.0, rank) for rank in range(num_ranks)]
    for i, c in enumerate(cost):
        busy, rank = heap[0]
        owned[rank].append(i)
        heapq.heapreplace(heap, (busy + c, rank))
    return owned


def _pack_all(
    owned: Sequence[Sequence[int]], length: np.ndarray, cost: np.ndarray, count: int, limit: int
) -> list[list[list[int]]] | None:
    """The sequences of each rank packed into `count` microbatches; None if those of a rank do not fit."""
    packed = []
    for own in owned:
        bins = _pack(own, length, cost, count, limit)
        if bins is None:
            return None
        packed.append(bins)
    return packed


def _pack(
    own: Sequence[int], length: np.ndarray, cost: np.ndarray, count: int, limit: int
) -> list[list[int]] | None:
    """Puts each sequence into the least costly microbatch that has room; None if none has."""
    bins: list[list[int]] = [[] for _ in range(count)]
    room = [limit] * count
    cheapest = [(0.0, b) for b in range(count)]
    for i, tokens, spent in zip(own, length[own].tolist(), cost[own].tolist(), strict=True):
        full = []
        while cheapest and room[cheapest[0][1]] < tokens:
            full.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        busy, best = cheapest[0]
        bins[best].append(i)
        room[best] -= tokens
        heapq.heapreplace(cheapest, (busy + spent, best))
        for one in full:
            heapq.heappush(cheapest, one)
    return [bins[b] for busy, b in sorted(cheapest, key=lambda one: (-one[0], one[1]))]
