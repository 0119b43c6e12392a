"""Runs microbatches through Megatron's pipeline schedules.

Gradients are summed over microbatches and data-parallel ranks and divided by nothing: every loss is a
microbatch's share of a global mean already. A rank without trained tokens only takes part in that sum.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.trainer.megatron.model import forward
from hybridrl.trainer.megatron.packing import Microbatch

Result = TypeVar("Result")

_NO_COUNT = torch.zeros((), dtype=torch.int)
"""In the place of a number of tokens, by which Megatron could divide: see sum_gradients."""


def evaluate(
    model: DistributedDataParallel,
    microbatches: Sequence[Microbatch],
    visit: Callable[[Microbatch, Tensor], None],
) -> None:
    """Forward without gradients. *Collective* over tensor and pipeline ranks.

    Args:
        visit: called with the hidden states of each microbatch, in order, on the last pipeline stage.
    """

    def finish(microbatch: Microbatch, hidden_R1: Tensor, non_loss_data: bool) -> None:
        visit(microbatch, hidden_R1)

    if microbatches:
        with torch.no_grad():
            _run(model, microbatches, finish, forward_only=True, collect_non_loss_data=True)


def accumulate_gradients(
    model: DistributedDataParallel,
    microbatches: Sequence[Microbatch],
    loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
) -> list[Result]:
    """Forward and backward; then the gradients are those of the whole minibatch. *Collective*, all ranks.

    Args:
        loss: maps the hidden states of a microbatch to its share of the objective, and what to return.

    Returns:
        The second results of `loss`, in order; empty on the other pipeline stages.
    """

    def finish(microbatch: Microbatch, hidden_R1: Tensor) -> tuple[Tensor, Tensor, Result]:
        scalar, result = loss(microbatch, hidden_R1)
        return scalar, _NO_COUNT, result

    if microbatches:
        return _run(model, microbatches, finish, forward_only=False)
    sum_gradients([model])
    return []


def sum_gradients(model: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's last act of a backward pass, without its division by a number of tokens."""
    finalize_model_grads(model, None, **groups)


def _run(
    model: DistributedDataParallel,
    microbatches: Sequence[Microbatch],
    finish: Callable[..., Any],
    **options: Any,
) -> list[Any]:
    def forward_step(feed: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        microbatch = next(feed)
        return forward(model, microbatch), partial(finish, microbatch)

    config: TransformerConfig = model.config
    config.finalize_model_grads_func = sum_gradients
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(microbatches),
        model=[model],
        num_microbatches=len(microbatches),
        seq_length=1,  # of no effect: pipeline stages tell each other the shapes
        micro_batch_size=1,
        **options,
    )
