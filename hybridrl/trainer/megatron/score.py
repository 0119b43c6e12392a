"""Log-probability and entropy of trained tokens under the present weights of a model.

Shape letters: U trained tokens of a batch, R those of one microbatch, V vocabulary entries of this rank.
"""

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from hybridrl.trainer.megatron.logprob import logprob_and_entropy
from hybridrl.trainer.megatron.model import policy_model
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.schedule import evaluate

_LOGITS_AT_ONCE = 2**26
"""Elements of a piece of logits. Of the size of all logits, one tensor is kept for the backward pass; the
others that the computation takes are of the size of a piece."""


class Scorer:
    def __init__(self, model: DistributedDataParallel, temperature: float) -> None:
        self._model, self._inner, self._temperature = model, policy_model(model), temperature
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._rows_at_once = max(1, _LOGITS_AT_ONCE // self._inner.share)

    def score(self, microbatch: Microbatch, hidden_R1: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, float32 [R], differentiable. *Collective*, tensor-parallel ranks."""
        pieces = zip(hidden_R1.split(self._rows_at_once), microbatch.target_R.split(self._rows_at_once))
        logps, entropies = zip(*(self._score(hidden, target) for hidden, target in pieces))
        return torch.cat(logps), torch.cat(entropies)

    def _score(self, hidden_R1: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        return logprob_and_entropy(
            self._inner.logits(hidden_R1),
            target_R,
            first=self._inner.first_entry,
            temperature=self._temperature,
            group=self._group,
        )

    def columns(self, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens of the microbatches, 0 at all others; [U], no gradients.

        *Collective* over tensor and pipeline ranks; all 0 except on the last pipeline stage.
        """
        logp_U, entropy_U = packed.zeros_U(), packed.zeros_U()

        def keep(microbatch: Microbatch, hidden_R1: Tensor) -> None:
            logp_U[microbatch.trained_R], entropy_U[microbatch.trained_R] = self.score(microbatch, hidden_R1)

        evaluate(self._model, microbatches, keep)
        return logp_U, entropy_U
