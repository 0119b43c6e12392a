"""Log-probability and entropy of trained tokens under the present weights of a model.

Shape letters: U trained tokens of a batch, R those of one microbatch, V vocabulary entries of this rank.
"""

from collections.abc import Sequence

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from hybridrl.trainer.megatron.logprob import logprob_and_entropy
from hybridrl.trainer.megatron.model import policy_model
from hybridrl.trainer.megatron.packing import Microbatch, PackedBatch
from hybridrl.trainer.megatron.schedule import evaluate


class Scorer:
    def __init__(self, model: DistributedDataParallel, temperature: float) -> None:
        self._model, self._temperature = model, temperature
        self._first = policy_model(model).first_entry
        self._group = parallel_state.get_tensor_model_parallel_group()

    def score(self, microbatch: Microbatch, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, float32 [R], differentiable. *Collective*, tensor-parallel ranks."""
        return logprob_and_entropy(
            logits_RV,
            microbatch.target_R,
            first=self._first,
            temperature=self._temperature,
            group=self._group,
        )

    def columns(self, packed: PackedBatch, microbatches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of the tokens of the microbatches, 0 at all others; [U], no gradients.

        *Collective* over tensor and pipeline ranks; all 0 except on the last pipeline stage.
        """
        logp_U, entropy_U = packed.zeros_U(), packed.zeros_U()

        def keep(microbatch: Microbatch, logits_RV: Tensor) -> None:
            logp_U[microbatch.trained_R], entropy_U[microbatch.trained_R] = self.score(microbatch, logits_RV)

        evaluate(self._model, microbatches, keep)
        return logp_U, entropy_U
