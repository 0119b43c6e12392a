"""Context parallelism over the ranks of Megatron's groups."""

from megatron.core import parallel_state
from torch import Tensor

from hybridrl.trainer.context import gather_predicted
from hybridrl.trainer.places import Microbatch


def from_context(microbatch: Microbatch, own_O: Tensor) -> Tensor:
    """As gather_predicted, over Megatron's context-parallel ranks."""
    return gather_predicted(microbatch, own_O, parallel_state.get_context_parallel_group())
