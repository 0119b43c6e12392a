"""Turns rows of a batch into packed microbatches.

Sequences are concatenated in order of length. Sequences of equal length are then neighbours, and attention
computes each run of them in one call. Of each trajectory only the tokens before its last predicted one are
packed. Predicted are the trained tokens, and, if the algorithm asks for them, the observed ones: what an
environment wrote.
Filler tokens make sequences divisible over context-parallel ranks, and the microbatch divisible over
tensor-parallel ranks and by the block size of FP8 products. Filler follows the tokens that it pads, so no
other token attends to it, and nothing is predicted from it.
Shape letters: W tokens of a microbatch, T tokens of it on this rank, P predicted tokens, for which logits are
computed: R trained ones, then E observed ones, O those of the P that this rank predicts, S sequences, U
trained tokens of the whole batch, N trajectories.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hybridrl.batch import RankBatch, TokenBlock, spans
from hybridrl.columns import COLUMNS, SIZES
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.pictures import PictureColumns
from hybridrl.trainer.places import Microbatch, Places, TokenPartition
from hybridrl.trainer.shared_prompts import Sequences, alone, sharing


@dataclass(frozen=True, slots=True)
class _Rows:
    """What packing needs to know about the rows of one block; int64, one element per row."""

    start: np.ndarray
    """Index of the row's first token in the block."""

    trained: np.ndarray
    """Number of trained tokens of the row."""

    last: np.ndarray
    """Position of the last predicted token in its row, 0 if there is none."""

    first_trained: np.ndarray
    """Index of the row's first trained token in the [U] columns of the batch."""

    observed: np.ndarray
    """Number of observed tokens of the row that are predicted."""


class PackedBatch:
    """A batch on one rank. Its trained tokens are numbered 0 to U - 1, in the order of the blocks."""

    def __init__(
        self,
        batch: RankBatch,
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
            share_prompts: a microbatch has each prompt once, and its answers after it.
            replays_experts: tokens go to the experts of column experts, so answers share a prompt only if the
                engine sent its tokens to the same ones.
            vision: the part of the model that reads pictures; None: pictures of the batch are ignored.
            observed: microbatches also predict the tokens of column observed.

        Raises:
            ValueError: the first token of a trajectory is trained on, but no output predicts it.
            ColumnError: a block does not carry the column, or a prompt has more or fewer placeholders than
                its pictures have tokens.
        """
        self._batch, self._device, self._partition = batch, device, partition
        self._share_prompts, self._replays_experts = share_prompts, replays_experts
        self._observed_T = [_observed(block) if observed else None for block in batch.blocks]
        self._rows: list[_Rows] = []
        self.num_trained = 0
        for block, observed_T in zip(batch.blocks, self._observed_T, strict=True):
            rows = _describe(block, self.num_trained, observed_T)
            self._rows.append(rows)
            self.num_trained += int(rows.trained.sum())
        lengths = [len(block.token_T) for block in batch.blocks]
        self._first_token = np.cumsum([0, *lengths])
        shows = vision is not None and any(SIZES in block.columns for block in batch.blocks)
        self._pictures = PictureColumns(batch.blocks, vision) if vision is not None and shows else None

    def column_U(self, name: str) -> Tensor:
        """A column of the blocks at the trained tokens, [U, ...], in its declared dtype.

        A column per turn is spread over the tokens of its turns.

        Raises:
            ColumnError: a block does not carry the column.
        """
        parts = [block.trained(name) for block in self._batch.blocks]
        none = np.zeros(0, COLUMNS[name].dtypes[0])
        return torch.from_numpy(np.concatenate(parts) if parts else none).to(self._device)

    def zeros_U(self) -> Tensor:
        return torch.zeros(self.num_trained, device=self._device)

    def trained(self, trajectories: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Trained tokens of some trajectories: their indices in [U], and the trajectory of each; int64."""
        index = np.asarray(trajectories, np.int64)
        first, count = self._gather(index, "first_trained"), self._gather(index, "trained")
        return self._tensor(spans(first, count)), self._tensor(np.repeat(index, count))

    def num_observed(self, trajectories: Sequence[int]) -> int:
        """Observed tokens of those trajectories that have a trained token."""
        index = np.asarray(trajectories, np.int64)
        return int(self._gather(index[self._gather(index, "trained") > 0], "observed").sum())

    def microbatch(self, trajectories: Sequence[int]) -> Microbatch | None:
        """The packed form of some trajectories; None if none of them has a trained token."""
        index = np.asarray(trajectories, np.int64)
        index = index[self._gather(index, "trained") > 0]
        if len(index) == 0:
            return None
        found = self._sequences(index)
        places = Places(found.length_G, self._partition, found.skip_G, found.shared)
        token_W, next_W, kind_next_W, source_W = self._tokens(found, places)
        predict_R, predict_E = (
            np.flatnonzero(kind_next_W == _TRAINED),
            np.flatnonzero(kind_next_W == _OBSERVED),
        )
        predict_P = np.concatenate([predict_R, predict_E])
        index = index[found.order_S]
        return places.microbatch(
            token_W,
            next_W,
            predict_P,
            source_W=source_W,
            seq_P=found.seq_G[np.searchsorted(places.offset_S, predict_P, side="right") - 1],
            trained_R=spans(self._gather(index, "first_trained"), self._gather(index, "trained")),
            device=self._device,
            num_seqs=len(index),
            shown=None if self._pictures is None else self._pictures.shown(source_W),
        )

    def _sequences(self, index: np.ndarray) -> Sequences:
        """The sequences that some trajectories are packed as."""
        start_S, length_S = self._gather(index, "start"), self._gather(index, "last")
        if not self._share_prompts:
            return alone(index, start_S, length_S)
        block_S, row_S = self._batch.block_N[index], self._batch.row_N[index]
        blocks = [self._batch.blocks[b] for b in block_S]
        places = [
            slice(start, start + block.prompt_tokens_N[row])
            for block, start, row in zip(blocks, start_S, row_S, strict=True)
        ]
        prompts = [block.token_T[place] for block, place in zip(blocks, places, strict=True)]
        kinds = None
        if self._replays_experts:  # the last token of a prompt is not shared
            kinds = [
                block.column("experts")[place.start : place.stop - 1].tobytes()
                for block, place in zip(blocks, places, strict=True)
            ]
        return sharing(index, start_S, length_S, prompts, self._first_token[block_S] + start_S, kinds)

    def _tokens(
        self, found: Sequences, places: "Places"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Input tokens, the token after each, why that one is predicted, and the index of each input token
        among the tokens of all blocks. Filler has token id 0 and index -1."""
        token_W, next_W = np.zeros((2, places.num_tokens), np.int64)
        source_W = np.full(places.num_tokens, -1)
        kind_next_W = np.zeros(places.num_tokens, np.int8)
        block_G = self._batch.block_N[found.trajectory_G]
        for b in np.unique(block_G):
            here, block = block_G == b, self._batch.blocks[b]
            source = spans(found.start_G[here], found.length_G[here])
            target = spans(places.offset_S[here], found.length_G[here])
            token_W[target], next_W[target] = block.token_T[source], block.token_T[source + 1]
            if (observed_T := self._observed_T[b]) is not None:
                kind_next_W[target] = np.where(observed_T[source + 1], _OBSERVED, 0)
            kind_next_W[target] += np.where(block.loss_mask_T[source + 1], _TRAINED, 0)
            source_W[target] = self._first_token[b] + source
        return token_W, next_W, kind_next_W, source_W

    def _gather(self, index: np.ndarray, name: str) -> np.ndarray:
        """Attribute `name` of _Rows for each trajectory."""
        value = np.empty(len(index), np.int64)
        block, row = self._batch.block_N[index], self._batch.row_N[index]
        for b in np.unique(block):
            value[block == b] = getattr(self._rows[b], name)[row[block == b]]
        return value

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def idle_microbatch(partition: TokenPartition, device: torch.device) -> Microbatch:
    """The shortest microbatch that the ranks can run together; it has no trained token."""
    places, none = Places(np.zeros(0, np.int64), partition), np.zeros(0, np.int64)
    token_W = np.zeros(places.num_tokens, np.int64)
    return places.microbatch(
        token_W,
        token_W,
        none,
        source_W=token_W - 1,
        seq_P=none,
        trained_R=none,
        device=device,
    )


_TRAINED, _OBSERVED = 1, 2
"""Why a token is predicted."""


def _observed(block: TokenBlock) -> np.ndarray:
    """The tokens of column observed that are not trained on, bool [T]; never the first of a row."""
    observed_T = block.column("observed") & ~block.loss_mask_T
    observed_T[block.start_N[:-1]] = False
    return observed_T


def _describe(block: TokenBlock, first: int, observed_T: np.ndarray | None) -> _Rows:
    start, mask_T = block.start_N[:-1], block.loss_mask_T
    if mask_T[start].any():
        row = int(np.flatnonzero(mask_T[start])[0])
        raise ValueError(f"row {row} of a block trains on its first token, which no output predicts")
    trained = np.add.reduceat(mask_T, start, dtype=np.int64)
    position_T = spans(np.zeros_like(start), np.diff(block.start_N))
    observed_T = np.zeros_like(mask_T) if observed_T is None else observed_T
    last = np.maximum.reduceat(np.where(mask_T | observed_T, position_T, 0), start)
    observed = np.add.reduceat(observed_T, start, dtype=np.int64)
    return _Rows(start, trained, last, first + np.cumsum(trained) - trained, observed)
