"""Turns rows of a batch into packed microbatches.

Sequences are laid end to end in order of length: equal lengths are neighbours, so attention handles each run
of them with one call. A trajectory enters up to the token before its last trained one: the rest is idle.
Shape letters: T input tokens of a microbatch, R its trained tokens, for which logits are computed, S its
sequences, U trained tokens of the whole batch, N trajectories of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from hybridrl.batch import RankBatch, TokenBlock


@dataclass(kw_only=True)
class Packing(PackedSeqParams):
    """Where sequences lie among the packed tokens; Megatron hands it to every attention layer."""

    position_T: Tensor
    """int64: of each token in its sequence."""

    runs: tuple[tuple[int, int], ...]
    """(number of sequences, their length) of neighbours of equal length."""

    predict_R: Tensor
    """int64: the token whose output predicts each trained token."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """One forward and backward."""

    token_T: Tensor
    """int64"""

    packing: Packing

    target_R: Tensor
    """int64: the trained tokens."""

    seq_R: Tensor
    """int64: sequence of each trained token, in [0, S)."""

    trained_R: Tensor
    """int64: position of each trained token among the U of the batch, for whose columns it is an index."""

    num_seqs: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """What packing needs to know about the rows of one block."""

    start: np.ndarray
    trained: np.ndarray
    """Trained tokens of each row."""

    last: np.ndarray
    """Position of the last trained token in its row, 0 if there is none."""

    first_trained: np.ndarray
    """Where the row's trained tokens begin among the U of the batch."""


class PackedBatch:
    """A batch on one rank: its trained tokens numbered 0 to U, in the order of the blocks."""

    def __init__(self, batch: RankBatch, device: torch.device) -> None:
        """
        Raises:
            ValueError: the first token of a trajectory is trained on: nothing predicts it.
        """
        self._batch, self._device = batch, device
        self._rows: list[_Rows] = []
        self.num_trained = 0
        for block in batch.blocks:
            rows = _describe(block, self.num_trained)
            self._rows.append(rows)
            self.num_trained += int(rows.trained.sum())

    def column_U(self, name: str) -> Tensor:
        """A float32 column of the blocks at the trained tokens."""
        parts = [getattr(block, name)[block.loss_mask_T] for block in self._batch.blocks]
        return torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.float32)])).to(self._device)

    def zeros_U(self) -> Tensor:
        return torch.zeros(self.num_trained, device=self._device)

    def trained(self, trajectories: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The trained tokens of trajectories: positions among the U, and the trajectory of each; int64."""
        index = np.asarray(trajectories, np.int64)
        first, count = self._gather(index, "first_trained"), self._gather(index, "trained")
        return self._tensor(_spans(first, count)), self._tensor(np.repeat(index, count))

    def microbatch(self, trajectories: Sequence[int]) -> Microbatch | None:
        """The packed form of some trajectories; None if none of them has a trained token."""
        index = np.asarray(trajectories, np.int64)
        index = index[self._gather(index, "trained") > 0]
        if len(index) == 0:
            return None
        length_S = self._gather(index, "last")
        order = np.argsort(length_S, kind="stable")
        index, length_S = index[order], length_S[order]
        token_T, next_T, trained_next_T = self._tokens(index, length_S)
        predict_R = np.flatnonzero(trained_next_T)
        seq_T = np.repeat(np.arange(len(index)), length_S)
        return Microbatch(
            token_T=self._tensor(token_T),
            packing=self._packing(length_S, predict_R),
            target_R=self._tensor(next_T[predict_R]),
            seq_R=self._tensor(seq_T[predict_R]),
            trained_R=self._tensor(
                _spans(self._gather(index, "first_trained"), self._gather(index, "trained"))
            ),
            num_seqs=len(index),
        )

    def _tokens(self, index: np.ndarray, length_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input tokens, the token after each, and whether that one is trained on."""
        token_T, next_T = np.empty((2, length_S.sum()), np.int64)
        trained_next_T = np.empty(len(token_T), bool)
        offset_S = np.cumsum(length_S) - length_S
        start_S, block_S = self._gather(index, "start"), self._batch.block_N[index]
        for b in np.unique(block_S):
            here, block = block_S == b, self._batch.blocks[b]
            source = _spans(start_S[here], length_S[here])
            target = _spans(offset_S[here], length_S[here])
            token_T[target], next_T[target] = block.token_T[source], block.token_T[source + 1]
            trained_next_T[target] = block.loss_mask_T[source + 1]
        return token_T, next_T, trained_next_T

    def _packing(self, length_S: np.ndarray, predict_R: np.ndarray) -> Packing:
        lengths, counts = np.unique(length_S, return_counts=True)
        return Packing(
            qkv_format="sbhd",  # for Megatron one long sequence; ours is what keeps its parts apart
            position_T=self._tensor(_spans(np.zeros_like(length_S), length_S)),
            runs=tuple(zip(counts.tolist(), lengths.tolist(), strict=True)),
            predict_R=self._tensor(predict_R),
        )

    def _gather(self, index: np.ndarray, name: str) -> np.ndarray:
        """A number of each trajectory, from the description of the row that it is."""
        value = np.empty(len(index), np.int64)
        block, row = self._batch.block_N[index], self._batch.row_N[index]
        for b in np.unique(block):
            value[block == b] = getattr(self._rows[b], name)[row[block == b]]
        return value

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _describe(block: TokenBlock, first: int) -> _Rows:
    start, mask_T = block.start_N[:-1], block.loss_mask_T
    if mask_T[start].any():
        row = int(np.flatnonzero(mask_T[start])[0])
        raise ValueError(f"row {row} of a block trains on its first token, which nothing predicts")
    trained = np.add.reduceat(mask_T, start, dtype=np.int64)
    position_T = _spans(np.zeros_like(start), np.diff(block.start_N))
    last = np.maximum.reduceat(np.where(mask_T, position_T, 0), start)
    return _Rows(start, trained, last, first + np.cumsum(trained) - trained)


def _spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... (length[0] of them), start[1], ..."""
    offset = np.cumsum(length) - length
    return np.arange(length.sum()) + np.repeat(start - offset, length)
