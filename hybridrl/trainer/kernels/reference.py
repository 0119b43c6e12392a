"""Softmax over a vocabulary that arrives in chunks, in torch.

The state of a row after some chunks is four numbers, with l the scores seen so far:

    0  m = max l        2  sum exp(l - m) (l - m)
    1  sum exp(l - m)   3  the target's score, 0 until its chunk has arrived

Source: online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867; number 2, for the entropy, is our
addition, and is rescaled with m in the same way.
Shape letters: R rows, C columns of a chunk.
"""

import torch
from torch import Tensor


def start(num_rows: int, device: torch.device) -> Tensor:
    """The state before the first chunk, float32 [4, R]."""
    state_4R = torch.zeros(4, num_rows, device=device)
    state_4R[0] = -torch.inf
    return state_4R


def take(state_4R: Tensor, logits_RC: Tensor, target_R: Tensor, first: int, temperature: float) -> None:
    """Add a chunk to the state, in place.

    Args:
        logits_RC: logits in any dtype, before the temperature; C may be 0.
        target_R: int64, token ids of the whole vocabulary.
        first: token id of the first column.
    """
    num_columns = logits_RC.shape[1]
    if num_columns == 0:
        return
    score_RC = logits_RC.float() / temperature
    move(state_4R, torch.maximum(state_4R[0], score_RC.amax(1)))
    here_R, column_R1 = _place(target_R, first, num_columns)
    state_4R[3] += score_RC.gather(1, column_R1).squeeze(1) * here_R
    score_RC -= state_4R[0].unsqueeze(1)
    exp_RC = score_RC.exp()
    state_4R[1] += exp_RC.sum(1)
    state_4R[2] += exp_RC.mul_(score_RC).sum(1)


def move(state_4R: Tensor, largest_R: Tensor) -> None:
    """Express the sums relative to a larger maximum, in place."""
    down_R = torch.where(state_4R[0] == largest_R, 0.0, state_4R[0] - largest_R)
    shrink_R = down_R.exp()
    # Before the first chunk the maximum is -inf and the sums are 0: 0 * inf must stay 0.
    moved_R = torch.where(state_4R[1] == 0, 0.0, state_4R[2] + down_R * state_4R[1])
    state_4R[2] = moved_R * shrink_R
    state_4R[1] *= shrink_R
    state_4R[0] = largest_R


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
    """Gradient of the logits, in their dtype; may overwrite the logits.

    Args:
        log_sum_R: log of the sum of exp(score) over the whole vocabulary.
    """
    log_p_RC = (logits_RC.float() / temperature).sub_(log_sum_R.unsqueeze(1))
    grad_RC = gradient(log_p_RC, target_R, entropy_R, grad_logp_R, grad_entropy_R, first)
    return grad_RC.div_(temperature).to(logits_RC.dtype)


def gradient(
    log_p_RC: Tensor,
    target_R: Tensor,
    entropy_R: Tensor,
    grad_logp_R: Tensor,
    grad_entropy_R: Tensor | None,
    first: int,
) -> Tensor:
    """Gradient of the scores, as a new tensor.

    d logp / d score = onehot - p;  d entropy / d score = -p (log p + entropy).

    Args:
        log_p_RC: log-probabilities; C may be 0.
    """
    grad_RC = log_p_RC.exp()
    if grad_entropy_R is None:
        grad_RC.mul_(-grad_logp_R.unsqueeze(1))
    else:
        factor_RC = (log_p_RC + entropy_R.unsqueeze(1)).mul_(grad_entropy_R.unsqueeze(1))
        grad_RC.mul_(factor_RC.add_(grad_logp_R.unsqueeze(1)).neg_())
    if log_p_RC.shape[1]:
        here_R, column_R1 = _place(target_R, first, log_p_RC.shape[1])
        grad_RC.scatter_add_(1, column_R1, (grad_logp_R * here_R).unsqueeze(1))
    return grad_RC


def _place(target_R: Tensor, first: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """Whether each target is among the columns, [R], and its column, [R, 1], or 0 if it is not."""
    here_R = (target_R >= first) & (target_R < first + num_columns)
    return here_R, torch.where(here_R, target_R - first, 0).unsqueeze(1)
