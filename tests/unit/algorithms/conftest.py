"""Random ragged batches, and ranks as threads, for the tests of the algorithms."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hybridrl.algorithms.base import (
    SCALAR_COLUMNS,
    TOKEN_COLUMNS,
    Known,
    Metrics,
    OneRank,
    Reduce,
    Tokens,
    Totals,
    argument,
)
from hybridrl.algorithms.objective import Objective


@dataclass
class RaggedBatch:
    """Trajectories of unequal length with prompts and tool answers between trained tokens, in shuffled
    groups."""

    reward_N: Tensor
    group_N: Tensor
    seq_T: Tensor
    mask_T: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.seq_T, self.mask_T, len(self.reward_N))

    @property
    def totals(self) -> Totals:
        return Totals(int(self.mask_T.sum()), len(self.reward_N))

    @property
    def rewards(self) -> list[float]:
        return self.reward_N.tolist()

    @property
    def groups(self) -> list[int]:
        return self.group_N.tolist()

    def trained(self, column_T: Tensor | str) -> list[list[float]]:
        """The trained tokens of every trajectory: what an oracle reads."""
        column_T = self.columns[column_T] if isinstance(column_T, str) else column_T
        return [column_T[(self.seq_T == i) & self.mask_T].tolist() for i in range(len(self.reward_N))]

    def scalars(self, *names: str) -> dict[str, Tensor]:
        return {argument(n): self.columns[n] for n in names}

    def rows(self, chosen: list[int]) -> "RaggedBatch":
        """The tokens of some trajectories; numbering and scalars stay those of the whole batch."""
        here_T = torch.isin(self.seq_T, torch.tensor(chosen, dtype=torch.int64))
        columns = {
            n: c[here_T] if n in TOKEN_COLUMNS | {"advantage", "logp", "entropy"} else c
            for n, c in self.columns.items()
        }
        return RaggedBatch(self.reward_N, self.group_N, self.seq_T[here_T], self.mask_T[here_T], columns)


@pytest.fixture
def ragged() -> Callable[..., RaggedBatch]:
    return make_ragged


def make_ragged(
    seed: int = 0, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (4, 3, 4, 2)
) -> RaggedBatch:
    """Groups of the given sizes, their members shuffled; the second group is flat."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    group_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    group_N = group_N[torch.randperm(len(group_N), generator=draw)]
    n = len(group_N)
    reward_N = torch.where(group_N == 1, torch.full((n,), 0.1, dtype=torch.float64), normal(n))
    size_N = torch.randint(3, 12, (n,), generator=draw)
    seq_T = torch.repeat_interleave(torch.arange(n), size_N)
    start_T = torch.cumsum(size_N, 0)[seq_T] - size_N[seq_T]
    place_T = torch.arange(len(seq_T)) - start_T
    hole_T = torch.rand(len(seq_T), generator=draw) < 0.2
    mask_T = (place_T > 0) & ~(hole_T & (place_T > 1))
    batch = RaggedBatch(reward_N.to(dtype), group_N, seq_T, mask_T)
    batch.columns = {
        n: c.to(dtype) if c.is_floating_point() else c for n, c in _columns(batch, normal, draw).items()
    }
    return batch


def _columns(batch: RaggedBatch, normal: Callable[..., Tensor], draw: torch.Generator) -> dict[str, Tensor]:
    t, n = len(batch.seq_T), len(batch.reward_N)
    old_logp_T = -normal(t).abs() - 0.01
    near = {
        name: (old_logp_T + 0.3 * normal(t)).clamp(max=-0.001)
        for name in ("rollout_logp", "ref_logp", "teacher_logp", "process_logp", "logp")
    }
    columns = {
        "old_logp": old_logp_T,
        **near,
        "old_entropy": normal(t).abs(),
        "entropy": normal(t).abs(),
        "old_collision": (2 * old_logp_T).exp()
        + (1 - old_logp_T.exp()).square() * torch.rand(t, generator=draw),
        "value": normal(t),
        "advantage": normal(n)[batch.seq_T],
        "turn_reward": normal(t) * (torch.rand(t, generator=draw) < 0.3),
        "lag": torch.randint(0, 3, (t,), generator=draw),
        "length": torch.bincount(batch.seq_T[batch.mask_T], minlength=n),
        "prompt_length": torch.randint(1, 9, (n,), generator=draw),
        "turns": torch.randint(1, 4, (n,), generator=draw),
        "truncated": torch.rand(n, generator=draw) < 0.3,
        "reward_parts": normal(n, 3),
        "greedy_reward": normal(n),
        "v_star": normal(n),
        "agent": torch.randint(0, 2, (n,), generator=draw),
        "episode": torch.randint(0, 3, (n,), generator=draw),
    }
    columns["turn"] = _turns(batch)
    columns["anchor"] = (7 * batch.seq_T + 3 * columns["turn"]) % 3 + 1
    assert columns.keys() >= (SCALAR_COLUMNS | TOKEN_COLUMNS) - {"token_reward"}
    return columns


def _turns(batch: RaggedBatch) -> Tensor:
    """A turn ends where the mask does."""
    begins_T = batch.mask_T.clone()
    begins_T[1:] &= ~batch.mask_T[:-1]
    count_T = torch.cumsum(begins_T, 0)
    first_N = torch.full((len(batch.reward_N),), 10**9).scatter_reduce(
        0, batch.seq_T[batch.mask_T], count_T[batch.mask_T], "amin"
    )
    return torch.where(batch.mask_T, count_T - first_N[batch.seq_T], 0)


class ThreadReduce:
    """One rank of several that run as threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list) -> None:
        self._rank, self._barrier, self._slots = rank, barrier, slots

    def sum(self, value: Tensor) -> Tensor:
        return torch.stack(self._gather(value)).sum(0)

    def max(self, value: Tensor) -> Tensor:
        return torch.stack(self._gather(value)).amax(0)

    def _gather(self, value: Tensor) -> list[Tensor]:
        self._slots[self._rank] = value
        self._barrier.wait(timeout=20)
        everyone = list(self._slots)
        self._barrier.wait(timeout=20)
        return everyone


@pytest.fixture
def run_ranks() -> Callable[[int, Callable], list]:
    """run_ranks(n, f) -> [f(0, reduce), ..., f(n - 1, reduce)], at the same time."""

    def run(num_ranks: int, function: Callable) -> list:
        barrier, slots, results = threading.Barrier(num_ranks), [None] * num_ranks, [None] * num_ranks
        errors: list[BaseException] = []

        def body(rank: int) -> None:
            try:
                results[rank] = function(rank, ThreadReduce(rank, barrier, slots))
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=body, args=(r,)) for r in range(num_ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results

    return run


@pytest.fixture
def prepared() -> Callable[..., dict[str, Tensor]]:
    """prepared(objective, batch): the columns of a batch and those that the objective makes of them."""

    def run(
        objective: Objective,
        batch: RaggedBatch,
        part: RaggedBatch | None = None,
        reduce: Reduce | None = None,
    ) -> dict[str, Tensor]:
        part = part or batch
        columns = {n: part.columns[n] for n in objective.columns}
        if not objective.prepares:
            return columns
        known = Known(3, batch.reward_N, batch.group_N, part.columns["advantage"], part.tokens, columns)
        return columns | objective.prepare(known, reduce or OneRank()).columns

    return run


@pytest.fixture
def evaluate() -> Callable[..., tuple[Tensor, Metrics]]:
    """evaluate(objective, columns, batch, logp_T): the objective's share of a batch, or of a part of one."""

    def run(
        objective: Objective, columns: dict, batch: RaggedBatch, logp_T: Tensor, totals: Totals | None = None
    ):
        return objective(
            logp_T, None, columns, batch.columns["advantage"], batch.tokens, totals or batch.totals
        )

    return run
