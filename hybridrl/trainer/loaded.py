"""The batch that a data-parallel rank trains on: its microbatches, and columns of their tokens.

Shape letters: U trained tokens of the whole batch, H trained tokens of the trajectories on this rank, N
trajectories.
"""

from collections.abc import Iterable, Iterator, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens
from hybridrl.algorithms.columns import TOKEN_COLUMNS
from hybridrl.batch import Minibatch, RankBatch
from hybridrl.columns import given_by
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.packing import PackedBatch
from hybridrl.trainer.places import Microbatch, TokenPartition


class LoadedBatch:
    def __init__(
        self,
        batch: RankBatch,
        dp_rank: int,
        device: torch.device,
        partition: TokenPartition,
        vision: VisionSpec | None = None,
        *,
        observed: bool = False,
        share_prompts: bool = False,
        replays_experts: bool = False,
    ) -> None:
        """
        Args:
            vision, share_prompts, replays_experts: as in PackedBatch.
            observed: microbatches also predict the tokens of column observed.
        """
        self.batch, self.step, self.minibatches = batch, batch.step, batch.minibatches
        self.first_epoch = _first_epoch(batch.minibatches)
        self.packed = PackedBatch(
            batch,
            device,
            partition,
            vision,
            observed=observed,
            share_prompts=share_prompts,
            replays_experts=replays_experts,
        )
        self.reward_N = torch.tensor(batch.reward_N, device=device)
        self.group_N = torch.tensor(batch.group_N, device=device)
        self.scalars = {name: torch.tensor(column, device=device) for name, column in batch.scalars.items()}
        """Scalar columns of the whole batch, for the estimator."""

        self.columns: dict[str, Tensor] = {}
        """Columns by name, [U, ...]. A column that ranks compute is 0 at the tokens of other ranks."""

        self._dp_rank = dp_rank
        self.held_H, trajectory_H = self.packed.trained(self._rows(self.first_epoch))
        self.tokens_H = Tokens(
            trajectory_H, torch.ones_like(trajectory_H, dtype=torch.bool), len(self.reward_N)
        )
        """Trained tokens of this rank's trajectories in the first epoch; seq_T indexes the whole batch."""

        at_U, trajectory_U = self.packed.trained(range(len(self.reward_N)))
        self.trajectory_U = torch.zeros(self.packed.num_trained, dtype=torch.int64, device=device)
        """Trajectory of each token, int64 [U]; 0 for tokens that no trajectory of the batch has."""

        self.trajectory_U[at_U] = trajectory_U

        self._own: set[str] = set()
        if batch.advantage_N is not None:
            self.columns["advantage"] = torch.tensor(batch.advantage_N, device=device)[self.trajectory_U]

    def unpack(self, names: Set[str]) -> None:
        """Add the columns of `names` that token blocks carry, and lag, which is derived from version.

        Raises:
            ColumnError: a block does not carry one of these columns.
        """
        for name in sorted(names & given_by("block") & TOKEN_COLUMNS):
            self.columns[name] = self.packed.column_U(name)
        if "lag" in names:
            self.columns["lag"] = self.step - 1 - self.packed.column_U("version").float()

    def of_prompts(self, name: str) -> list[np.ndarray]:
        """A column per prompt: one array for each trajectory; samples of one prompt share the same array.

        Raises:
            ColumnError: a block does not carry the column.
        """
        batch = self.batch
        return [batch.blocks[b].column(name)[row] for b, row in zip(batch.block_N, batch.row_N, strict=True)]

    def microbatches(self, minibatches: Iterable[Minibatch]) -> list[Microbatch]:
        """Packed microbatches of this data-parallel rank; those without a trained token are left out."""
        packed = (self.packed.microbatch(rows) for m in minibatches for rows in m.rows[self._dp_rank])
        return [microbatch for microbatch in packed if microbatch is not None]

    def num_observed(self, minibatch: Minibatch) -> int:
        """Observed tokens of the whole minibatch, on all ranks."""
        return self.packed.num_observed([n for _, n in _placed(minibatch)])

    def held(self, name: str) -> Tensor:
        """A column at the tokens of this rank, [H]."""
        return self.columns[name][self.held_H]

    def held_of(self, minibatch: Minibatch) -> Tensor:
        """Indices in a column of the tokens of this rank's trajectories of a minibatch."""
        return self.packed.trained(self._rows([minibatch]))[0]

    def _rows(self, minibatches: Iterable[Minibatch]) -> list[int]:
        return [n for minibatch in minibatches for rank, n in _placed(minibatch) if rank == self._dp_rank]

    def add(self, name: str, column_U: Tensor) -> None:
        """Add a column that every rank computed for its own tokens, 0 at all others."""
        self.columns[name] = column_U
        self._own.add(name)

    def add_held(self, name: str, value_H: Tensor) -> None:
        """Add a column by its values at the tokens of this rank."""
        column_U = self.packed.zeros_U()
        column_U[self.held_H] = value_H
        self.add(name, column_U)

    def put(self, name: str, column_U: Tensor) -> None:
        """Replace a column by one with the values of all ranks."""
        self.columns[name] = column_U
        self._own.discard(name)

    def share(self, reduce: Reduce) -> None:
        """Sum the added columns over ranks if later epochs have trajectories on other ranks. *Collective*."""
        if _rows_stay(self.minibatches):
            return
        for name in sorted(self._own):
            self.columns[name] = reduce.sum(self.columns[name])
        self._own.clear()

    def whole(self, name: str, reduce: Reduce) -> Tensor:
        """A column with the values of all ranks, [U]. *Collective* over data-parallel ranks."""
        return reduce.sum(self.columns[name]) if name in self._own else self.columns[name]

    def take(self, name: str, column_U: np.ndarray) -> None:
        """Add a whole column that another group of ranks computed.

        Raises:
            ValueError: its length is not the number of trained tokens of this batch.
        """
        if column_U.shape != (self.packed.num_trained,):
            raise ValueError(
                f"{name} has shape {column_U.shape}, "
                f"step {self.step} trains on {self.packed.num_trained} tokens"
            )
        self.columns[name] = torch.tensor(column_U, device=self.held_H.device)


def _first_epoch(minibatches: Sequence[Minibatch]) -> Sequence[Minibatch]:
    """The minibatches before the first one that repeats a trajectory."""
    seen: set[int] = set()
    for i, minibatch in enumerate(minibatches):
        rows = {n for _, n in _placed(minibatch)}
        if rows & seen:
            return minibatches[:i]
        seen |= rows
    return minibatches


def _rows_stay(minibatches: Sequence[Minibatch]) -> bool:
    """Whether every trajectory is on the same data-parallel rank in all epochs."""
    home: dict[int, int] = {}
    return all(
        home.setdefault(n, rank) == rank for minibatch in minibatches for rank, n in _placed(minibatch)
    )


def _placed(minibatch: Minibatch) -> Iterator[tuple[int, int]]:
    """(data-parallel rank, trajectory) of every trajectory of a minibatch."""
    return (
        (rank, n) for rank, microbatches in enumerate(minibatch.rows) for rows in microbatches for n in rows
    )
