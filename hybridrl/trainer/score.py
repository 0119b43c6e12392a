"""Outputs of a model for trained tokens at its present weights: log-probability and entropy, or a value.

Shape letters: U trained tokens of a batch, R trained tokens of one microbatch, O those of the R that this
rank predicts, T tokens of a block.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.trainer.base import Backend, Model
from hybridrl.trainer.packing import PackedBatch
from hybridrl.trainer.places import Microbatch


class Scorer:
    def __init__(self, model: Model, temperature: float) -> None:
        self._model, self._temperature = model, temperature

    def score(self, microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the trained tokens, [R], at the temperature of this scorer."""
        logp_P, entropy_P = self.score_predicted(microbatch, hidden_O1)
        return microbatch.trained(logp_P), microbatch.trained(entropy_P)

    def score_predicted(self, microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the trained and the observed tokens, [P]."""
        return self._model.score(microbatch, hidden_O1, self._temperature)

    def head(self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor, head_RK: Tensor) -> Tensor:
        """Log-probability of the given tokens at each trained token, [R, K].

        Args:
            logp_P: what `score_predicted` returned.
        """
        none_EK = head_RK.new_zeros(len(logp_P) - len(head_RK), head_RK.shape[1])
        head_PK = torch.cat([head_RK, none_EK]).long()
        head_logp_PK = self._model.head_logp(microbatch, hidden_O1, logp_P, head_PK, self._temperature)
        return microbatch.trained(head_logp_PK)

    def columns(self, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens of the microbatches, 0 at all others; [U], no gradients.

        *Collective* over all ranks; all 0 except on the last pipeline stage.
        """
        logp_U, entropy_U = packed.zeros_U(), packed.zeros_U()

        def keep(microbatch: Microbatch, hidden_O1: Tensor) -> None:
            logp_U[microbatch.trained_R], entropy_U[microbatch.trained_R] = self.score(microbatch, hidden_O1)

        self._model.evaluate(microbatches, keep)
        return logp_U, entropy_U

    def head_columns(
        self, packed: PackedBatch, microbatches: Sequence[Microbatch], count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of the tokens of the microbatches, [U], and the likeliest tokens of their places
        with their log-probabilities, int32 and float32 [U, count]; as `columns` otherwise.
        """
        logp_U = packed.zeros_U()
        head_logp_UK = logp_U.new_zeros(len(logp_U), count)
        head_UK = torch.zeros_like(head_logp_UK, dtype=torch.int32)

        def keep(microbatch: Microbatch, hidden_O1: Tensor) -> None:
            logp_P, _ = self.score_predicted(microbatch, hidden_O1)
            head_RK = microbatch.trained(self._model.likeliest(microbatch, hidden_O1, count))
            at_R = microbatch.trained_R
            logp_U[at_R], head_UK[at_R] = microbatch.trained(logp_P), head_RK.int()
            head_logp_UK[at_R] = self.head(microbatch, hidden_O1, logp_P, head_RK)

        self._model.evaluate(microbatches, keep)
        return logp_U, head_UK, head_logp_UK


def value_column(model: Model, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> Tensor:
    """The value before each trained token of the microbatches, 0 at all others; [U], no gradients.

    *Collective* over all ranks; all 0 except on the last pipeline stage.
    """
    value_U = packed.zeros_U()

    def keep(microbatch: Microbatch, hidden_O1: Tensor) -> None:
        value_U[microbatch.trained_R] = microbatch.trained(model.values(microbatch, hidden_O1))

    model.evaluate(microbatches, keep)
    return value_U


def block_logp(backend: Backend, scorer: Scorer, block: TokenBlock) -> np.ndarray:
    """Log-probability of the trained tokens of a block, 0 at all others; float32 [T]. *Collective*.

    Every data-parallel rank computes all of it: for checks, not for training.
    """
    zero_N, row_N = np.zeros(len(block), np.int64), np.arange(len(block))
    batch = RankBatch(0, (block,), zero_N, row_N, zero_N, zero_N.astype(np.float32), None)
    packed = PackedBatch(batch, backend.device, backend.partition, backend.setup.model.vision)
    lengths = np.diff(block.start_N).tolist()
    rows_of = _by_tokens(lengths, backend.setup.actor.microbatch_tokens)
    microbatches = [packed.microbatch(rows) for rows in rows_of]
    logp_U, _ = scorer.columns(packed, [m for m in microbatches if m is not None])
    logp_T = np.zeros(len(block.token_T), np.float32)
    logp_T[block.loss_mask_T] = logp_U.cpu().numpy()
    return backend.mesh.from_last_stage(logp_T)


def _by_tokens(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Groups of consecutive rows with at most `limit` tokens each; a longer row gets a separate group."""
    rows: list[int] = []
    room = limit
    for n, length in enumerate(lengths):
        if length > room and rows:
            yield rows
            rows, room = [], limit
        rows.append(n)
        room -= length
    yield rows
