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


def evaluate(
    model: DistributedDataParallel,
    microbatches: Sequence[Microbatch],
    collect: Callable[[Microbatch, Tensor], Result],
) -> list[Result]:
    """Forward without gradients. *Collective* over tensor and pipeline ranks.

    Args:
        collect: called with the logits [R, V] of each microbatch, on the last pipeline stage.

    Returns:
        What `collect` returned, in order; empty on the other stages.
    """

    def keep(microbatch: Microbatch, logits_RV: Tensor, non_loss_data: bool) -> Result:
        return collect(microbatch, logits_RV)

    if not microbatches:
        return []
    with torch.no_grad():
        return _run(model, microbatches, keep, forward_only=True, collect_non_loss_data=True)


def accumulate_gradients(
    model: DistributedDataParallel,
    microbatches: Sequence[Microbatch],
    loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
) -> list[Result]:
    """Forward and backward; then the gradients are those of the whole minibatch. *Collective*, all ranks.

    Args:
        loss: maps the logits [R, V] of a microbatch to its share of the objective, and what to return.

    Returns:
        The second results of `loss`, in order; empty on the other pipeline stages.
    """

    def share(microbatch: Microbatch, logits_RV: Tensor) -> tuple[Tensor, Tensor, Result]:
        scalar, result = loss(microbatch, logits_RV)
        return (
            scalar,
            torch.zeros((), dtype=torch.int),
            result,
        )  # the count of tokens is of no use here: see sum_gradients

    if microbatches:
        return _run(model, microbatches, share, forward_only=False)
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
