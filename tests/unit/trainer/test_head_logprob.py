"""Log-probabilities of an engine's likeliest tokens, from rows of an output layer that is cut over ranks."""

import numpy as np
import output_scenarios as scenarios
import pytest
import torch
import trainer_values as values
from trainer_ranks import on_ranks


@pytest.mark.parametrize(
    ("sizes", "padding", "temperature", "soft_cap", "banned"),
    [
        ([11], 0, 1.0, None, []),
        ([11], 2, 0.7, 1.5, []),
        ([6, 5, 0], 3, 0.7, None, []),
        ([6, 5], 0, 0.7, None, [9]),
    ],
    ids=["one rank", "padded and capped", "one rank with padding only", "a token that is not sampled"],
)
def test_they_equal_log_softmax_and_its_gradients(sizes, padding, temperature, soft_cap, banned) -> None:
    hidden_RH, weight_VH, target_R, weight_R = values.make_output_layer(sum(sizes))
    # The target is in the head of some rows, and one token in that of all.
    head_RK = torch.stack(
        [torch.tensor([4, (3 * row) % 11, int(target)]) for row, target in enumerate(target_R)]
    )
    hidden_RH.requires_grad_()
    weight_VH.requires_grad_()
    logits_RV = hidden_RH @ weight_VH.T
    if soft_cap is not None:
        logits_RV = soft_cap * torch.tanh(logits_RV / soft_cap)
    logits_RV = logits_RV.index_fill(1, torch.tensor(banned, dtype=torch.int64), -1e4)
    log_prob_RV = (logits_RV / temperature).log_softmax(1)
    gap_RK = log_prob_RV.gather(1, head_RK) - log_prob_RV.gather(1, target_R[:, None])
    of_hidden, of_weight = torch.autograd.grad(gap_RK.square().sum(1) @ weight_R, (hidden_RH, weight_VH))

    options = (sizes, padding, temperature, soft_cap, head_RK.tolist(), banned)
    ranks = on_ranks(len(sizes), scenarios.sharded_head_gaps, *options)
    for rank in ranks:
        np.testing.assert_allclose(rank["gaps"], gap_RK.detach(), rtol=1e-5, atol=1e-6)
        assert (rank["gaps"][:, 2] == 0).all()
        for found in rank["likeliest"]:  # of the sampled distribution: banned tokens are the last
            assert found == logits_RV.topk(len(found[0]), dim=1).indices.tolist()
    np.testing.assert_allclose(sum(r["grads"][0] for r in ranks), of_hidden, rtol=1e-5, atol=5e-6)
    parts = [r["grads"][1] for r in ranks]
    joined = np.concatenate([p[:n] for p, n in zip(parts, sizes, strict=True)])
    np.testing.assert_allclose(joined, of_weight, rtol=1e-5, atol=5e-6)
    assert all((p[n:] == 0).all() for p, n in zip(parts, sizes, strict=True))
