"""Log-probability and entropy from hidden states, the vocabulary in pieces and cut over ranks."""

import os
import subprocess
import sys

import numpy as np
import output_scenarios as scenarios
import pytest
import torch
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.trainer.kernels import reference


@pytest.mark.parametrize(
    "sizes,padding,temperature,chunk,soft_cap,banned",
    [
        ([11], 0, 1.0, 100, None, ()),
        ([11], 2, 0.7, 4, None, ()),
        ([6, 5, 0], 3, 0.7, 4, None, ()),
        ([6, 5], 0, 1.0, 1, None, ()),
        ([6, 5], 3, 0.7, 4, 1.5, ()),
        ([6, 5], 3, 0.7, 4, None, (1, 9)),
    ],
    ids=[
        "at once",
        "in pieces, with padding",
        "one rank with padding only",
        "one entry at a time",
        "capped",
        "two tokens banned",
    ],
)
def test_it_equals_log_softmax_and_its_gradients(
    sizes, padding, temperature, chunk, soft_cap, banned
) -> None:
    hidden_RH, weight_VH, target_R, weight_R = values.make_output_layer(sum(sizes))
    hidden_RH.requires_grad_()
    weight_VH.requires_grad_()
    logits_RV = hidden_RH @ weight_VH.T
    if soft_cap is not None:
        logits_RV = soft_cap * torch.tanh(logits_RV / soft_cap)
    if banned:
        logits_RV = logits_RV.index_fill(1, torch.tensor(banned), -1e30)
    log_prob_RV = (logits_RV / temperature).log_softmax(1)
    logp_R = log_prob_RV.gather(1, target_R[:, None])[:, 0]
    entropy_R = -(log_prob_RV.exp() * log_prob_RV).sum(1)
    sums = (logp_R @ weight_R, entropy_R @ weight_R, logp_R @ weight_R + entropy_R.square().sum())
    expected = [torch.autograd.grad(s, (hidden_RH, weight_VH), retain_graph=True) for s in sums]

    options = (sizes, padding, temperature, chunk, soft_cap, banned)
    ranks = on_ranks(len(sizes), scenarios.sharded_linear_logprobs, *options)
    for rank in ranks:
        np.testing.assert_allclose(rank["logp"], logp_R.detach(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(rank["entropy"], entropy_R.detach(), rtol=1e-6, atol=1e-6)
    for i, (of_hidden, of_weight) in enumerate(expected):
        np.testing.assert_allclose(sum(r["grads"][i][0] for r in ranks), of_hidden, rtol=1e-5, atol=2e-6)
        parts = [r["grads"][i][1] for r in ranks]
        joined = np.concatenate([p[:n] for p, n in zip(parts, sizes, strict=True)])
        np.testing.assert_allclose(joined, of_weight, rtol=1e-5, atol=2e-6)
        assert all((p[n:] == 0).all() for p, n in zip(parts, sizes, strict=True))


@pytest.mark.parametrize("chunk_sizes", [[40], [13, 27], [1, 38, 1]])
def test_the_state_does_not_depend_on_the_chunks(chunk_sizes) -> None:
    draw = torch.Generator().manual_seed(1)
    logits_RV = 30 * torch.randn(6, 40, generator=draw)
    target_R = torch.randint(40, (6,), generator=draw)
    state_4R, at = reference.start(6, logits_RV.device), 0
    for part in logits_RV.split(chunk_sizes, dim=1):
        reference.take(state_4R, part, target_R, at, 1.0)
        at += part.shape[1]
    log_p_RV = logits_RV.double().log_softmax(1)
    log_sum_R = state_4R[0] + state_4R[1].log()
    torch.testing.assert_close(log_sum_R, logits_RV.logsumexp(1))
    entropy_R = state_4R[1].log() - state_4R[2] / state_4R[1]
    torch.testing.assert_close(entropy_R, -(log_p_RV.exp() * log_p_RV).sum(1).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state_4R[3], logits_RV.gather(1, target_R[:, None])[:, 0])


INTERPRETED = """
import torch
from hybridrl.trainer.kernels import fused, reference

fused._COLUMNS = 16  # several rounds a row
draw = torch.Generator().manual_seed(2)
cases = ((40, torch.float32, 0.7), (7, torch.float32, 1.0), (33, torch.bfloat16, 1.0))
for columns, dtype, temperature in cases:
    logits = (5 * torch.randn(6, columns + 9, generator=draw)).to(dtype)
    target = torch.randint(columns + 9, (6,), generator=draw)
    states = {}
    for kernels in (reference, fused):
        state = reference.start(6, logits.device)
        kernels.take(state, logits[:, :columns].contiguous(), target, 0, temperature)
        kernels.take(state, logits[:, columns:].contiguous(), target, columns, temperature)
        states[kernels] = state
    torch.testing.assert_close(states[fused], states[reference], rtol=1e-5, atol=1e-5)

    log_sum = states[reference][0] + states[reference][1].log()
    rows = [log_sum, *torch.randn(3, 6, generator=draw)]
    for at, part in ((0, logits[:, :columns]), (columns, logits[:, columns:])):
        expected, found = (
            kernels.turn_into_gradient(part.clone(), target, *rows, at, temperature)
            for kernels in (reference, fused)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)
print("equal")
"""


def test_the_triton_kernels_equal_the_reference_in_the_interpreter() -> None:
    # Triton reads this variable when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "equal\n", done.stderr[-3000:]
