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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hybridrl.batch import RankBatch, TokenBlock, spans
from hybridrl.columns import COLUMNS, SIZES
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.pictures import PictureColumns, Pictures, Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPartition:
    """How the tokens of a microbatch are partitioned over the ranks that share it, with equal work for all.

    A sequence is split into 2 * size chunks. Rank r has chunk r and chunk 2 * size - 1 - r (zigzag): under a
    causal mask the first is cheap and the second expensive.
    """

    rank: int = 0
    """Context-parallel rank."""

    size: int = 1
    """Context-parallel size."""

    tp: int = 1
    """Tensor-parallel size: sequence parallelism splits each rank's tokens evenly over these ranks."""

    multiple: int = 1
    """The number of tokens on each tensor-parallel rank is a multiple of this (FP8)."""

    @property
    def chunk(self) -> int:
        """The padded length of every sequence is a multiple of this."""
        return 1 if self.size == 1 else 2 * self.size

    @property
    def whole(self) -> int:
        """The padded length of every microbatch is a multiple of this."""
        return math.lcm(self.chunk, self.size * self.tp * self.multiple)


@dataclass(kw_only=True)
class Packing:
    """Positions of sequences among the packed tokens."""

    position_T: Tensor
    """int64: position of each token in its sequence."""

    runs: tuple[tuple[int, int], ...]
    """(number of sequences, their length over all ranks) of each run of equal lengths, filler included."""

    edge_S: Tensor
    """int32: first token of every sequence of `runs` over all ranks, then the end of the last one
    (cu_seqlens)."""

    predict_O: Tensor
    """int64: index of the token on this rank whose output predicts each of the O tokens."""

    source_T: Tensor
    """int64: index of each token among the tokens of all blocks of the batch; -1 for filler."""

    place_3T: Tensor | None = None
    """int64: place of each token along time, row and column; None: no prompt of the batch has a picture, and
    the position is the place along all three."""

    feature_T: Tensor | None = None
    """int64: row of the features of `pictures` that each token shows, -1 for text. None: there is none."""

    pictures: Pictures | None = None
    """Pictures of this microbatch; None: it shows none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """The input of one forward and backward pass.

    A microbatch without trained tokens is idle: it is run only because other ranks run one.
    """

    token_T: Tensor
    """int64: token ids."""

    packing: Packing

    target_O: Tensor
    """int64: ids of the trained and observed tokens that this rank predicts."""

    most_predicted: int
    """Largest O over the context-parallel ranks."""

    from_P: Tensor
    """int64: for each predicted token, rank * most_predicted + its index among the O of that rank. First come
    the R trained tokens, then the E observed ones."""

    seq_R: Tensor
    """int64: sequence of each trained token, in [0, S)."""

    trained_R: Tensor
    """int64: index of each trained token in the [U] columns of the batch."""

    seq_E: Tensor
    """int64: sequence of each observed token, in [0, S); empty unless the batch predicts them."""

    num_seqs: int

    def trained(self, value_P: Tensor) -> Tensor:
        """The part of an output for all predicted tokens that belongs to the trained ones, [R, ...]."""
        return value_P[: len(self.trained_R)]

    def observed(self, value_P: Tensor) -> Tensor:
        """The part that belongs to the observed ones, [E, ...]."""
        return value_P[len(self.trained_R) :]


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
    ) -> None:
        """
        Args:
            vision: the part of the model that reads pictures; None: pictures of the batch are ignored.
            observed: microbatches also predict the tokens of column observed.

        Raises:
            ValueError: the first token of a trajectory is trained on, but no output predicts it.
            ColumnError: a block does not carry the column, or a prompt has more or fewer placeholders than
                its pictures have tokens.
        """
        self._batch, self._device, self._partition = batch, device, partition
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
        length_S = self._gather(index, "last")
        order = np.argsort(length_S, kind="stable")
        index, length_S = index[order], length_S[order]
        places = _Places(length_S, self._partition)
        token_W, next_W, kind_next_W, source_W = self._tokens(index, length_S, places)
        predict_R, predict_E = (
            np.flatnonzero(kind_next_W == _TRAINED),
            np.flatnonzero(kind_next_W == _OBSERVED),
        )
        predict_P = np.concatenate([predict_R, predict_E])
        return places.microbatch(
            token_W,
            next_W,
            predict_P,
            source_W=source_W,
            seq_P=np.searchsorted(places.offset_S, predict_P, side="right") - 1,
            trained_R=spans(self._gather(index, "first_trained"), self._gather(index, "trained")),
            device=self._device,
            shown=None if self._pictures is None else self._pictures.shown(source_W),
        )

    def _tokens(
        self, index: np.ndarray, length_S: np.ndarray, places: "_Places"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Input tokens, the token after each, why that one is predicted, and the index of each input token
        among the tokens of all blocks. Filler has token id 0 and index -1."""
        token_W, next_W = np.zeros((2, places.num_tokens), np.int64)
        source_W = np.full(places.num_tokens, -1)
        kind_next_W = np.zeros(places.num_tokens, np.int8)
        start_S, block_S = self._gather(index, "start"), self._batch.block_N[index]
        for b in np.unique(block_S):
            here, block = block_S == b, self._batch.blocks[b]
            source = spans(start_S[here], length_S[here])
            target = spans(places.offset_S[here], length_S[here])
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
    places, none = _Places(np.zeros(0, np.int64), partition), np.zeros(0, np.int64)
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


class _Places:
    """Positions of the tokens of a microbatch: sequences of given lengths in order, each with its filler,
    then if necessary one sequence of filler only."""

    def __init__(self, length_S: np.ndarray, partition: TokenPartition) -> None:
        self._partition = partition
        padded_S = -(-length_S // partition.chunk) * partition.chunk
        lacking = -int(padded_S.sum()) % partition.whole if len(length_S) else partition.whole
        self.offset_S = np.cumsum(padded_S) - padded_S
        self.num_tokens = int(padded_S.sum()) + lacking
        lengths, counts = np.unique(padded_S, return_counts=True)
        runs = list(zip(counts.tolist(), lengths.tolist(), strict=True))
        self._runs = tuple([*runs, (1, lacking)] if lacking else runs)
        padded_S = np.append(padded_S, lacking)
        self._position_W = spans(np.zeros_like(padded_S), padded_S)
        self._rank_W = self._ranks(np.repeat(padded_S, padded_S))

    def _edges(self) -> np.ndarray:
        lengths = [length for count, length in self._runs for _ in range(count)]
        return np.cumsum([0, *lengths], dtype=np.int32)

    def _ranks(self, length_W: np.ndarray) -> np.ndarray:
        """Context-parallel rank of each token, from the length of its sequence."""
        num_chunks = 2 * self._partition.size
        chunk_W = self._position_W * num_chunks // length_W
        return (
            np.minimum(chunk_W, num_chunks - 1 - chunk_W)
            if self._partition.size > 1
            else np.zeros_like(length_W)
        )

    def _places(self, shown: Shown, source_W: np.ndarray) -> np.ndarray:
        """Places of all tokens; those of filler are their positions."""
        return np.where(source_W >= 0, shown.place_3W, self._position_W)

    def microbatch(
        self,
        token_W: np.ndarray,
        next_W: np.ndarray,
        predict_P: np.ndarray,
        *,
        source_W: np.ndarray,
        seq_P: np.ndarray,
        trained_R: np.ndarray,
        device: torch.device,
        shown: Shown | None = None,
    ) -> Microbatch:
        """This rank's part of the microbatch.

        Args:
            predict_P: indices of the tokens whose outputs predict the trained ones, ascending; then of
                those whose outputs predict the observed ones.
            seq_P: sequence of each of these tokens.
            shown: what the tokens show; None: the batch has no pictures.
        """
        own, rank_P = np.flatnonzero(self._rank_W == self._partition.rank), self._rank_W[predict_P]
        predict_O = predict_P[rank_P == self._partition.rank]
        count = np.bincount(rank_P, minlength=self._partition.size)
        from_P = rank_P * count.max()
        for rank in range(self._partition.size):
            from_P[rank_P == rank] += np.arange(count[rank])

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return Microbatch(
            token_T=tensor(token_W[own]),
            packing=Packing(
                position_T=tensor(self._position_W[own]),
                runs=self._runs,
                edge_S=tensor(self._edges()),
                predict_O=tensor(np.searchsorted(own, predict_O)),
                source_T=tensor(source_W[own]),
                place_3T=None if shown is None else tensor(self._places(shown, source_W)[:, own]),
                feature_T=None if shown is None else tensor(shown.feature_W[own]),
                pictures=shown.pictures if shown is not None and shown.pictures.pixels else None,
            ),
            target_O=tensor(next_W[predict_O]),
            most_predicted=int(count.max()),
            from_P=tensor(from_P),
            seq_R=tensor(seq_P[: len(trained_R)]),
            trained_R=tensor(trained_R),
            seq_E=tensor(seq_P[len(trained_R) :]),
            num_seqs=len(self.offset_S),
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
