"""Random ragged batches, and ranks as threads, on which plug-ins are checked and compared.

Shape letters: N trajectories, T packed tokens.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals
from hybridrl.algorithms.columns import TOKEN_COLUMNS, argument
from hybridrl.columns import COLUMNS, ColumnSpec

_OTHER_TOKEN_COLUMNS = frozenset({"advantage", "logp", "entropy"})


@dataclass
class RaggedBatch:
    """Trajectories of unequal length, with prompts and tool answers between trained tokens, groups
    shuffled."""

    reward_N: Tensor
    group_N: Tensor
    seq_T: Tensor
    mask_T: Tensor
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Columns by name: those of hybridrl.columns, and advantage, logp and entropy."""

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
        """The trained tokens of every trajectory, as lists."""
        column_T = self.columns[column_T] if isinstance(column_T, str) else column_T
        return [column_T[(self.seq_T == i) & self.mask_T].tolist() for i in range(len(self.reward_N))]

    def arguments(self, *names: str) -> dict[str, Tensor]:
        """Columns by the names of a plug-in's parameters."""
        return {argument(n): self.columns[n] for n in names}

    def rows(self, chosen: list[int]) -> "RaggedBatch":
        """The tokens of some trajectories; numbering and scalars stay those of the whole batch."""
        here_T = torch.isin(self.seq_T, torch.tensor(chosen, dtype=torch.int64))
        per_token = TOKEN_COLUMNS | _OTHER_TOKEN_COLUMNS
        columns = {n: c[here_T] if n in per_token else c for n, c in self.columns.items()}
        return RaggedBatch(self.reward_N, self.group_N, self.seq_T[here_T], self.mask_T[here_T], columns)

    def permuted(self, order_N: Tensor) -> "RaggedBatch":
        """The same trajectories in another order."""
        parts = [torch.nonzero(self.seq_T == i).flatten() for i in order_N.tolist()]
        at_T, place_N = torch.cat(parts), torch.argsort(order_N)
        per_token = TOKEN_COLUMNS | _OTHER_TOKEN_COLUMNS
        columns = {n: c[at_T] if n in per_token else c[order_N] for n, c in self.columns.items()}
        seq_T, mask_T = place_N[self.seq_T[at_T]], self.mask_T[at_T]
        return RaggedBatch(self.reward_N[order_N], self.group_N[order_N], seq_T, mask_T, columns)


def ragged_batch(
    seed: int = 0, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (4, 3, 4, 2)
) -> RaggedBatch:
    """A batch with groups of the given sizes in a random order; the rewards of the second group are all
    equal."""
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
    columns = {**_token_columns(batch, normal, draw), **_scalar_columns(batch, normal, draw)}
    columns |= _heads(normal(len(seq_T), 3), normal(len(seq_T), 3))
    columns |= {name: _any(spec, batch, normal) for name, spec in COLUMNS.items() if name not in columns}
    batch.columns = {n: c.to(dtype) if c.is_floating_point() else c for n, c in columns.items()}
    return batch


def _token_columns(
    batch: RaggedBatch, normal: Callable[..., Tensor], draw: torch.Generator
) -> dict[str, Tensor]:
    t, n = len(batch.seq_T), len(batch.reward_N)
    old_logp_T = -normal(t).abs() - 0.01
    p_T = old_logp_T.exp()
    near = ("rollout_logp", "ref_logp", "teacher_logp", "process_logp", "logp")
    turn_T = _turns(batch)
    return {
        "old_logp": old_logp_T,
        **{name: (old_logp_T + 0.3 * normal(t)).clamp(max=-0.001) for name in near},
        "old_entropy": normal(t).abs(),
        "entropy": normal(t).abs(),
        "old_collision": p_T.square() + (1 - p_T).square() * torch.rand(t, generator=draw),
        "value": normal(t),
        "advantage": normal(n)[batch.seq_T],
        "turn_reward": normal(t) * (torch.rand(t, generator=draw) < 0.3),
        "lag": torch.randint(0, 3, (t,), generator=draw),
        "turn": turn_T,
        "anchor": (7 * batch.seq_T + 3 * turn_T) % 3 + 1,
    }


def _heads(logit_TV: Tensor, other_TV: Tensor) -> dict[str, Tensor]:
    """The two first of three tokens, of an engine, and of a policy and a teacher that are near it."""
    engine_TV = logit_TV.log_softmax(1)
    policy_TV = (logit_TV + 0.3 * other_TV).log_softmax(1)
    teacher_TV = (logit_TV - 0.5 * other_TV).log_softmax(1)
    return {
        "engine_head_logp": engine_TV[:, :2],
        "head_logp": policy_TV[:, :2],
        "teacher_head": torch.arange(2).expand(len(logit_TV), 2),
        "teacher_head_logp": teacher_TV[:, :2],
    }


def _scalar_columns(
    batch: RaggedBatch, normal: Callable[..., Tensor], draw: torch.Generator
) -> dict[str, Tensor]:
    n = len(batch.reward_N)
    return {
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


def _any(spec: ColumnSpec, batch: RaggedBatch, normal: Callable[..., Tensor]) -> Any:
    """Random values of a column that no function above makes, such as one that other code declared."""
    count = len(batch.seq_T) if spec.shape[0] == "T" else len(batch.reward_N)
    value = normal(count, *(2 for _ in spec.axes))
    if np.issubdtype(np.dtype(spec.dtypes[0]), np.floating):
        return value
    return value > 0 if spec.dtype == "bool" else (value.abs() * 3).long()


def _turns(batch: RaggedBatch) -> Tensor:
    """Turn of each token, [T]: a run of trained tokens is one turn."""
    begins_T = batch.mask_T.clone()
    begins_T[1:] &= ~(batch.mask_T[:-1] & (batch.seq_T[1:] == batch.seq_T[:-1]))
    count_T = torch.cumsum(begins_T, 0)
    first_N = torch.full((len(batch.reward_N),), len(count_T) + 1)
    first_N = first_N.scatter_reduce(0, batch.seq_T[batch.mask_T], count_T[batch.mask_T], "amin")
    return torch.where(batch.mask_T, count_T - first_N[batch.seq_T], 0)


class ThreadReduce:
    """The base.Reduce of one of several ranks that run as threads of this process."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Any]) -> None:
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


def run_ranks(num_ranks: int, function: Callable[[int, ThreadReduce], Any]) -> list[Any]:
    """[function(0, reduce), ..., function(num_ranks - 1, reduce)], run concurrently; in a reduction each
    waits for all others.

    Raises:
        Exception: the first one that a rank raised; the other ranks are released.
    """
    barrier, slots = threading.Barrier(num_ranks), [None] * num_ranks

    def release(future: Future) -> None:
        if future.exception() is not None:
            barrier.abort()

    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(function, r, ThreadReduce(r, barrier, slots)) for r in range(num_ranks)]
        for future in futures:
            future.add_done_callback(release)
    errors = [error for f in futures if (error := f.exception()) is not None]
    cause = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if errors:
        raise (cause or errors)[0]
    return [future.result() for future in futures]
