"""The two passes of reference.py as Triton kernels: one program per row reads and writes the logits once.

Shape letters: R rows, C columns of a chunk.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 4096
"""Largest number of columns that a program holds at a time."""


def take(state_4R: Tensor, logits_RC: Tensor, target_R: Tensor, first: int, temperature: float) -> None:
    """Same contract as reference.take."""
    _launch(_take, state_4R, logits_RC, target_R, first, temperature)


def turn_into_gradient(
    logits_RC: Tensor,
    target_R: Tensor,
    log_sum_R: Tensor,
    entropy_R: Tensor,
    grad_logp_R: Tensor,
    grad_entropy_R: Tensor,
    first: int,
    temperature: float,
) -> Tensor:
    """Same contract as reference.turn_into_gradient; the gradient overwrites the logits."""
    row_4R = torch.stack([log_sum_R, entropy_R, grad_logp_R, grad_entropy_R])
    _launch(_turn_into_gradient, row_4R, logits_RC, target_R, first, temperature)
    return logits_RC


def _launch(
    kernel: Any, row_4R: Tensor, logits_RC: Tensor, target_R: Tensor, first: int, temperature: float
) -> None:
    """Launch one program per row.

    Args:
        row_4R: four numbers per row, which the kernel reads or writes.
    """
    num_rows, num_columns = logits_RC.shape
    if num_rows and num_columns:
        kernel[(num_rows,)](
            row_4R,
            logits_RC,
            target_R,
            first,
            1.0 / temperature,
            num_rows,
            num_columns,
            logits_RC.stride(0),
            COLUMNS=min(_COLUMNS, triton.next_power_of_2(num_columns)),
        )


@triton.jit
def _take(
    state, logits, target, first, inverse_temperature, num_rows, num_columns, stride, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.load(state + row)
    total = tl.load(state + num_rows + row)
    weighted = tl.load(state + 2 * num_rows + row)
    wanted = tl.load(target + row) - first
    for at in range(0, num_columns, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        score = tl.load(logits + row * stride + column, mask=column < num_columns, other=-float("inf"))
        score = score.to(tl.float32) * inverse_temperature
        grown = tl.maximum(largest, tl.max(score, 0))
        down = largest - grown
        shrink = tl.exp(down)
        weighted = tl.where(total == 0.0, 0.0, weighted + down * total) * shrink
        total = total * shrink
        largest = grown
        below = score - largest
        exp = tl.exp(below)
        total += tl.sum(exp, 0)
        weighted += tl.sum(tl.where(column < num_columns, exp * below, 0.0), 0)
    tl.store(state + row, largest)
    tl.store(state + num_rows + row, total)
    tl.store(state + 2 * num_rows + row, weighted)
    if (wanted >= 0) & (wanted < num_columns):
        found = tl.load(logits + row * stride + wanted).to(tl.float32) * inverse_temperature
        tl.store(state + 3 * num_rows + row, found)


@triton.jit
def _turn_into_gradient(
    rows, logits, target, first, inverse_temperature, num_rows, num_columns, stride, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    log_sum = tl.load(rows + row)
    entropy = tl.load(rows + num_rows + row)
    grad_logp = tl.load(rows + 2 * num_rows + row)
    grad_entropy = tl.load(rows + 3 * num_rows + row)
    wanted = tl.load(target + row) - first
    for at in range(0, num_columns, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        place = logits + row * stride + column
        score = tl.load(place, mask=column < num_columns, other=-float("inf")).to(tl.float32)
        log_p = score * inverse_temperature - log_sum
        factor = grad_logp + grad_entropy * (log_p + entropy)
        grad = tl.where(column == wanted, grad_logp, 0.0) - tl.exp(log_p) * factor
        tl.store(place, (grad * inverse_temperature).to(logits.dtype.element_ty), mask=column < num_columns)
