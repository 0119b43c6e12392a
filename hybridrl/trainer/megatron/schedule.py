"""Runs microbatches through Megatron's pipeline schedules.

Gradients are summed over microbatches and data-parallel ranks and divided by nothing: every loss is a
microbatch's share of a global mean already. A rank without trained tokens only takes part in that sum, unless
others need its layers: it then runs idle microbatches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.trainer.megatron.model import Stage, forward, policy_model
from hybridrl.trainer.megatron.packing import Deal, Microbatch, idle_microbatch

Result = TypeVar("Result")

_NO_COUNT = torch.zeros((), dtype=torch.int)
"""In the place of a number of tokens, by which Megatron could divide: see sum_gradients."""


def evaluate(
    stage: Stage,
    microbatches: Sequence[Microbatch],
    visit: Callable[[Microbatch, Tensor], None],
) -> None:
    """Forward without gradients. *Collective*, all ranks.

    Args:
        visit: called with the hidden states of each microbatch, in order, on the last pipeline stage.
    """

    def finish(microbatch: Microbatch, hidden_O1: Tensor, non_loss_data: bool) -> None:
        if microbatch.num_seqs:
            visit(microbatch, hidden_O1)

    if filled := _filled(stage, microbatches):
        with torch.no_grad():
            _run(stage, filled, finish, forward_only=True, collect_non_loss_data=True)


def accumulate_gradients(
    stage: Stage,
    microbatches: Sequence[Microbatch],
    loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
) -> list[Result]:
    """Forward and backward; then the gradients are those of the whole minibatch. *Collective*, all ranks.

    Args:
        loss: maps the hidden states of a microbatch to its share of the objective, and what to return.

    Returns:
        The second results of `loss`, in order; empty on the other pipeline stages.
    """

    def finish(microbatch: Microbatch, hidden_O1: Tensor) -> tuple[Tensor, Tensor, Result | None]:
        if not microbatch.num_seqs:
            return policy_model(stage).no_loss(hidden_O1), _NO_COUNT, None
        scalar, result = loss(microbatch, hidden_O1)
        return scalar, _NO_COUNT, result

    least = int(stage[0].ddp_config.overlap_grad_reduce)  # the backward pass is what begins the sum
    if filled := _filled(stage, microbatches, least):
        return [result for result in _run(stage, filled, finish, forward_only=False) if result is not None]
    sum_gradients(stage)
    return []


def sum_gradients(stage: Stage, num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's last act of a backward pass, without its division by a number of tokens."""
    finalize_model_grads(cast(Any, stage), None, **groups)


def _filled(stage: Stage, microbatches: Sequence[Microbatch], least: int = 0) -> list[Microbatch]:
    """With idle ones at the end, where the count has to be one that suits all ranks. *Collective*."""
    config: TransformerConfig = stage[0].config
    device, count = next(stage[0].parameters()).device, max(len(microbatches), least)
    if config.expert_model_parallel_size > 1 or config.expert_tensor_parallel_size > 1:
        most = torch.tensor(count, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX, parallel_state.get_data_parallel_group())
        count = int(most)
    if len(stage) > 1:
        count += -count % config.pipeline_model_parallel_size  # chunks take turns in rounds of that many
    idle = [idle_microbatch(Deal.here(config), device) for _ in range(count - len(microbatches))]
    return [*microbatches, *idle]


def _run(
    stage: Stage,
    microbatches: Sequence[Microbatch],
    finish: Callable[..., Any],
    **options: Any,
) -> list[Any]:
    def forward_step(feed: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        microbatch = next(feed)
        return forward(model, microbatch), partial(finish, microbatch)

    config: TransformerConfig = stage[0].config
    config.finalize_model_grads_func = sum_gradients
    config.no_sync_func = _without_sum(stage)
    feeds = [iter(microbatches) for _ in stage]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=feeds if len(stage) > 1 else feeds[0],
        model=cast(Any, stage),
        num_microbatches=len(microbatches),
        seq_length=1,  # of no effect: pipeline stages tell each other the shapes
        micro_batch_size=1,
        **options,
    )


def _without_sum(stage: Stage) -> Callable[[], Any]:
    """Inside, backward passes leave gradients on their rank; the last microbatch is outside."""

    @contextmanager
    def context() -> Iterator[None]:
        with ExitStack() as stack:
            for chunk in stage:
                stack.enter_context(chunk.no_sync())
            yield

    return context
