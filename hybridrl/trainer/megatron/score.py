"""Log-probability and entropy of trained tokens under the present weights of a model.

Shape letters: U trained tokens of a batch, R those of one microbatch, V vocabulary entries of this rank.
"""

from collections.abc import Sequence

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor

from hybridrl.trainer.megatron.linear_logprob import Shard, linear_logprob
from hybridrl.trainer.megatron.logprob import logprob_and_entropy
from hybridrl.trainer.megatron.model import policy_model
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.schedule import evaluate

LOGITS_AT_ONCE = 2**24
"""Elements. Up to here the logits of a microbatch are kept for the backward pass; more are never held, but
computed piece by piece, and once more in the backward pass."""


class Scorer:
    def __init__(self, model: DistributedDataParallel, temperature: float) -> None:
        self._model, self._inner, self._temperature = model, policy_model(model), temperature
        self._group = parallel_state.get_tensor_model_parallel_group()

    def score(self, microbatch: Microbatch, hidden_R1: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, float32 [R], differentiable. *Collective*, tensor-parallel ranks."""
        if len(hidden_R1) * self._inner.share > LOGITS_AT_ONCE:
            return self._score_in_pieces(microbatch.target_R, hidden_R1)
        return logprob_and_entropy(
            self._inner.logits(hidden_R1),
            microbatch.target_R,
            first=self._inner.first_entry,
            temperature=self._temperature,
            group=self._group,
        )

    def _score_in_pieces(self, target_R: Tensor, hidden_R1: Tensor) -> tuple[Tensor, Tensor]:
        inner = self._inner
        shard = Shard(first=inner.first_entry, num_entries=inner.num_entries, group=self._group)
        hidden_RH = hidden_R1.squeeze(1).to(inner.output_weight.dtype)
        return linear_logprob(
            copy_to_tensor_model_parallel_region(hidden_RH),
            inner.output_weight,
            target_R,
            shard,
            temperature=self._temperature,
            piece=max(1, LOGITS_AT_ONCE // len(hidden_RH)),
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
