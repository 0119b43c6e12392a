"""The places of the tokens of a microbatch, and what a forward and backward pass is given.

Shape letters: W tokens of a microbatch, T tokens of it on this rank, P predicted tokens, R trained ones of
them, then E observed ones, O those of the P that this rank predicts, S sequences, U trained tokens of the
whole batch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybridrl.batch import spans
from hybridrl.trainer.pictures import Pictures, Shown


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


class SharedPrompt(NamedTuple):
    """A prompt that stands once among the packed tokens, and the answers to it that follow.

    The prompt lacks its last token, with which each answer begins, so what predicts a token of an answer lies
    in that answer's own sequence.
    """

    prompt: int
    """Tokens of the prompt, without its last one."""

    answers: tuple[tuple[int, int], ...]
    """(number of answers, their tokens) of each run of equal lengths."""

    first: tuple[int, ...]
    """Index of the first token of each answer's trajectory among the tokens of all blocks. The tokens of the
    prompt are those of the first of these trajectories."""

    filler: int = 0
    """Tokens of filler after the prompt, which no answer attends to. That of answers is part of them."""

    @property
    def sequences(self) -> list[int]:
        """Tokens of the prompt, then of each answer, filler included."""
        own = (length for count, length in self.answers for _ in range(count))
        return [self.prompt + self.filler, *own]

    @property
    def num_sequences(self) -> int:
        return 1 + sum(count for count, _ in self.answers)

    @property
    def num_tokens(self) -> int:
        return sum(self.sequences)

    def padded(self, chunk: int) -> "SharedPrompt":
        """The same with filler that makes each sequence a multiple of `chunk`."""
        runs: dict[int, int] = {}
        for count, length in self.answers:
            whole = length + -length % chunk
            runs[whole] = runs.get(whole, 0) + count
        answers = tuple((count, length) for length, count in runs.items())
        return self._replace(answers=answers, filler=-self.prompt % chunk)


@dataclass(kw_only=True)
class Packing:
    """Positions of sequences among the packed tokens."""

    position_T: Tensor
    """int64: position of each token in its sequence."""

    runs: tuple[tuple[int, int], ...]
    """(number of sequences, their length over all ranks) of each run of equal lengths, filler included."""

    shared: tuple[SharedPrompt, ...] = ()
    """Prompts with several answers in this microbatch, which lie before the sequences of `runs`. Empty unless
    actor.share_prompts is set."""

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


class Places:
    """Positions of the tokens of a microbatch: sequences of given lengths in order, each with its filler,
    then if necessary one sequence of filler only."""

    def __init__(
        self,
        length_S: np.ndarray,
        partition: TokenPartition,
        first_S: np.ndarray | None = None,
        shared: tuple[SharedPrompt, ...] = (),
    ) -> None:
        """
        Args:
            first_S: position of each sequence's first token; None: 0.
            shared: what the sequences at the beginning are, with as many tokens; the others are whole.
        """
        self._partition, self._shared = partition, tuple(one.padded(partition.chunk) for one in shared)
        padded_S = -(-length_S // partition.chunk) * partition.chunk
        lacking = -int(padded_S.sum()) % partition.whole if len(length_S) else partition.whole
        self.offset_S = np.cumsum(padded_S) - padded_S
        self.num_tokens = int(padded_S.sum()) + lacking
        lengths, counts = np.unique(padded_S[sum(one.num_sequences for one in shared) :], return_counts=True)
        runs = list(zip(counts.tolist(), lengths.tolist(), strict=True))
        self._runs = tuple([*runs, (1, lacking)] if lacking else runs)
        padded_S = np.append(padded_S, lacking)
        first_S = np.zeros_like(padded_S) if first_S is None else np.append(first_S, 0)
        self._position_W = spans(first_S, padded_S)
        self._rank_W = self._ranks(spans(np.zeros_like(padded_S), padded_S), np.repeat(padded_S, padded_S))

    def _edges(self) -> np.ndarray:
        lengths = [length for count, length in self._runs for _ in range(count)]
        return np.cumsum([0, *lengths], dtype=np.int32)

    def _ranks(self, place_W: np.ndarray, length_W: np.ndarray) -> np.ndarray:
        """Context-parallel rank of each token, from its place in its sequence and that one's length."""
        num_chunks = 2 * self._partition.size
        chunk_W = place_W * num_chunks // length_W
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
        num_seqs: int | None = None,
        shown: Shown | None = None,
    ) -> Microbatch:
        """This rank's part of the microbatch.

        Args:
            predict_P: indices of the tokens whose outputs predict the trained ones, ascending; then of
                those whose outputs predict the observed ones.
            seq_P: trajectory of each of these tokens.
            num_seqs: number of trajectories; None: each sequence is one.
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
                shared=self._shared,
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
            num_seqs=len(self.offset_S) if num_seqs is None else num_seqs,
        )
