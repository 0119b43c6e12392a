"""Log-probability and entropy over a vocabulary that is cut over ranks."""

import numpy as np
import output_scenarios as scenarios
import pytest
import torch
import trainer_values as values
from trainer_ranks import on_ranks


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("sizes", [[11], [6, 5, 0]], ids=["whole", "uneven, one rank with padding only"])
def test_it_equals_log_softmax_and_its_gradients(sizes, temperature) -> None:
    logits_RV, target_R, weight_R = values.make_logits(sum(sizes))
    logits_RV.requires_grad_()
    log_prob_RV = (logits_RV / temperature).log_softmax(1)
    logp_R = log_prob_RV.gather(1, target_R[:, None])[:, 0]
    entropy_R = -(log_prob_RV.exp() * log_prob_RV).sum(1)
    sums = (logp_R @ weight_R, entropy_R @ weight_R, logp_R @ weight_R + entropy_R.square().sum())
    expected = [torch.autograd.grad(s, logits_RV, retain_graph=True)[0].numpy() for s in sums]

    ranks = on_ranks(len(sizes), scenarios.cut_logprobs, sizes, temperature)
    for rank in ranks:
        np.testing.assert_allclose(rank["logp"], logp_R.detach(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(rank["entropy"], entropy_R.detach(), rtol=1e-6, atol=1e-6)
    for i, gradient in enumerate(expected):
        joined = np.concatenate([rank["grads"][i] for rank in ranks], axis=1)
        np.testing.assert_allclose(joined, gradient, rtol=1e-5, atol=1e-6)
