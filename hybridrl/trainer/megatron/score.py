"""What a model says of trained tokens under its present weights: log-probability and entropy, or a value.

Shape letters: U trained tokens of a batch, R those of one microbatch, O those of them that this rank
predicts, V vocabulary entries of this rank.
"""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor

from hybridrl.trainer.megatron.collectives import from_context
from hybridrl.trainer.megatron.linear_logprob import Shard, linear_logprob
from hybridrl.trainer.megatron.logprob import logprob_and_entropy
from hybridrl.trainer.megatron.model import Stage, policy_model
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.schedule import evaluate

LOGITS_AT_ONCE = 2**24
"""Elements. Up to here the logits of a microbatch are kept for the backward pass; more are never held, but
computed piece by piece, and once more in the backward pass."""


class Scorer:
    def __init__(self, model: Stage, temperature: float) -> None:
        self._model, self._inner, self._temperature = model, policy_model(model), temperature
        self._group = parallel_state.get_tensor_model_parallel_group()

    def score(self, microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of all trained tokens, float32 [R], differentiable.

        *Collective* over tensor- and context-parallel ranks.
        """
        own_O2 = torch.stack(self._score_own(microbatch.target_O, hidden_O1), dim=1)
        logp_R, entropy_R = from_context(microbatch, own_O2).unbind(1)
        return logp_R, entropy_R

    def _score_own(self, target_O: Tensor, hidden_O1: Tensor) -> tuple[Tensor, Tensor]:
        if len(hidden_O1) * self._inner.share > LOGITS_AT_ONCE:
            return self._score_in_pieces(target_O, hidden_O1)
        return logprob_and_entropy(
            self._inner.logits(hidden_O1),
            target_O,
            first=self._inner.first_entry,
            temperature=self._temperature,
            group=self._group,
        )

    def _score_in_pieces(self, target_O: Tensor, hidden_O1: Tensor) -> tuple[Tensor, Tensor]:
        inner = self._inner
        shard = Shard(
            first=inner.first_entry,
            num_entries=inner.num_entries,
            group=self._group,
            soft_cap=inner.soft_cap,
        )
        hidden_OH = hidden_O1.squeeze(1).to(inner.output_weight.dtype)
        return linear_logprob(
            copy_to_tensor_model_parallel_region(hidden_OH),
            inner.output_weight,
            target_O,
            shard,
            temperature=self._temperature,
            piece=max(1, LOGITS_AT_ONCE // len(hidden_OH)),
        )

    def columns(self, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens of the microbatches, 0 at all others; [U], no gradients.

        *Collective* over all ranks; all 0 except on the last pipeline stage.
        """
        logp_U, entropy_U = packed.zeros_U(), packed.zeros_U()

        def keep(microbatch: Microbatch, hidden_O1: Tensor) -> None:
            logp_U[microbatch.trained_R], entropy_U[microbatch.trained_R] = self.score(microbatch, hidden_O1)

        evaluate(self._model, microbatches, keep)
        return logp_U, entropy_U


def values(model: Stage, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
    """What the value head of a model says before each trained token, float32 [R], differentiable.

    *Collective* over context-parallel ranks.
    """
    return from_context(microbatch, policy_model(model).values(hidden_O1))


def value_column(model: Stage, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> Tensor:
    """The same for the tokens of the microbatches, 0 at all others; [U], no gradients.

    *Collective* over all ranks; all 0 except on the last pipeline stage.
    """
    value_U = packed.zeros_U()

    def keep(microbatch: Microbatch, hidden_O1: Tensor) -> None:
        value_U[microbatch.trained_R] = values(model, microbatch, hidden_O1)

    evaluate(model, microbatches, keep)
    return value_U
