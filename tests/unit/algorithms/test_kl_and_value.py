"""KL forms, value losses and entropy: value and gradient against plain Python."""

import math

import pytest
import torch

from hybridrl import registry
from hybridrl.algorithms.columns import argument
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.config.schema import AlgorithmConfig


def k1(logp, ref, **_):
    return logp - ref


def k2(logp, ref, **_):
    return (logp - ref) ** 2 / 2


def k3(logp, ref, **_):
    return math.exp(ref - logp) - 1 + logp - ref


def clip10(value):
    return min(max(value, -10), 10)


# name -> value, and the function whose derivative in logp is the gradient (fixed: a copy of logp held still)
CASES = {
    "k1": (k1, k1),
    "k2": (k2, k2),
    "k3": (k3, k3),
    "abs": (lambda logp, ref, **_: abs(logp - ref), lambda logp, ref, **_: abs(logp - ref)),
    "k1_plus": (k1, k2),
    "k3_plus": (k3, k2),
    "abs_plus": (lambda logp, ref, **_: abs(logp - ref), k2),
    "k3_clamped": (
        lambda logp, ref, **_: min(k3(logp, ref), 10),
        lambda logp, ref, **_: min(k3(logp, ref), 10),
    ),
    "k1_clamped": (
        lambda logp, ref, **_: clip10(k1(logp, ref)),
        lambda logp, ref, **_: clip10(k1(logp, ref)),
    ),
    "k2_clamped": (
        lambda logp, ref, **_: clip10(k2(logp, ref)),
        lambda logp, ref, **_: clip10(k2(logp, ref)),
    ),
    "k3_unbiased": (
        lambda logp, ref, old, **_: math.exp(logp - old) * k3(logp, ref),
        lambda logp, ref, old, **_: math.exp(logp - old) * k3(logp, ref),
    ),
    "k3_score": (
        lambda logp, ref, **_: clip10(k3(logp, ref)),
        lambda logp, ref, fixed, **_: clip10(math.exp(logp - fixed) * k3(logp, ref)),
    ),
    "k3_engine": (
        lambda logp, ref, rollout, **_: math.exp(logp - rollout) * k3(logp, ref),
        lambda logp, ref, rollout, fixed, **_: math.exp(fixed - rollout) * k3(logp, ref),
    ),
}


def kl(name):
    return build("kl", name, {}, where="algorithm.kl.estimator")


def test_every_form_has_an_oracle():
    assert set(CASES) == set(registry.names(PACKAGES["kl"]))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(ragged, name, dtype, tolerance):
    batch, (value, slope), form, h = ragged(0, dtype), CASES[name], kl(name), 1e-6
    logp_T = batch.columns["logp"].clone().requires_grad_()
    columns = {argument(c): batch.columns[c] for c in form.needs}
    kl_T = form(logp_T=logp_T, ref_logp_T=batch.columns["ref_logp"], **columns)
    kl_T.sum().backward()
    others = (batch.columns[n].tolist() for n in ("ref_logp", "old_logp", "rollout_logp"))
    for t, (logp, ref, old, rollout) in enumerate(zip(logp_T.tolist(), *others, strict=True)):
        row = {"ref": ref, "old": old, "rollout": rollout, "fixed": logp}
        assert kl_T[t].item() == pytest.approx(value(logp, **row), rel=tolerance, abs=tolerance)
        derivative = (slope(logp + h, **row) - slope(logp - h, **row)) / (2 * h)
        assert float(logp_T.grad[t]) == pytest.approx(
            derivative, abs=1e-7 if dtype == torch.float64 else 1e-5
        )


@pytest.mark.parametrize("name", ["k2", "k3", "abs"])
def test_never_negative_and_zero_for_equal_policies(name):
    logp_T = torch.linspace(-8, -0.1, 50, dtype=torch.float64)
    assert (kl(name)(logp_T, logp_T.flip(0)) >= 0).all() and not kl(name)(logp_T, logp_T).any()


def test_expected_values_are_the_divergence_and_only_k2_has_its_gradient():
    """Over all tokens of a small vocabulary, weighed by the policy."""
    logit_V = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    ref_V = torch.tensor([-0.2, 0.5, 0.4, -1.0], dtype=torch.float64).log_softmax(0)
    logp_V = logit_V.log_softmax(0)
    p_V = logp_V.exp()
    divergence = (p_V * (logp_V - ref_V)).sum()
    (exact_V,) = torch.autograd.grad(divergence, logit_V, retain_graph=True)
    for name in ("k1", "k3"):
        assert (p_V * kl(name)(logp_V, ref_V)).sum().item() == pytest.approx(divergence.item(), abs=1e-12)
    for name, is_exact in {"k1": False, "k2": True, "k3": False, "k1_plus": True, "k3_plus": True}.items():
        loss = (p_V.detach() * kl(name)(logp_V, ref_V)).sum()
        (found_V,) = torch.autograd.grad(loss, logit_V, retain_graph=True)
        assert torch.allclose(found_V, exact_V, atol=1e-12) == is_exact, name


def test_the_clamped_form_has_no_gradient_at_far_tokens_and_ours_has():
    far_T = torch.tensor([-9.0], dtype=torch.float64, requires_grad=True)
    for name, has_gradient in {"k3_clamped": False, "k3": True, "k3_plus": True}.items():
        (found_T,) = torch.autograd.grad(
            kl(name)(far_T, torch.tensor([-1.0], dtype=torch.float64)).sum(), far_T
        )
        assert bool(found_T.any()) == has_gradient, name


def test_k3_does_not_overflow():
    assert torch.isfinite(kl("k3")(torch.tensor([-1000.0]), torch.tensor([-0.1]))).all()


def value_loss(name, **options):
    return build("value_loss", name, options, where="critic.loss")


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_losses(ragged, clip):
    batch = ragged(1)
    made = value_loss("squared") if clip is None else value_loss("clipped", clip=clip)
    value_T, old_T, target_T = (
        batch.columns["value"],
        batch.columns["value"] + 0.3 * batch.columns["logp"],
        batch.columns["ref_logp"],
    )
    out = made(value_T=value_T, return_T=target_T, tokens=batch.tokens, old_value_T=old_T)
    for t, (v, old, target) in enumerate(
        zip(value_T.tolist(), old_T.tolist(), target_T.tolist(), strict=True)
    ):
        free = (v - target) ** 2
        near = free if clip is None else (min(max(v, old - clip), old + clip) - target) ** 2
        assert float(out.loss_T[t]) == pytest.approx(max(free, near) / 2, abs=1e-12)
        if clip is not None:
            assert bool(out.mean["critic/vf_clipfrac"][t]) == (near > free)


def test_every_value_loss_is_tested():
    assert registry.names(PACKAGES["value_loss"]) == ["clipped", "squared"]


def test_a_clipped_value_has_no_gradient():
    value_T = torch.tensor([2.0], requires_grad=True)
    out = value_loss("clipped", clip=0.2)(value_T, torch.tensor([0.0]), None, torch.tensor([3.0]))
    out.loss_T.sum().backward()
    assert float(value_T.grad) == 0


def test_only_tokens_of_high_entropy_are_trained_on(ragged, prepared, evaluate):
    batch = ragged(2)
    objective = Objective(AlgorithmConfig(loss="reinforce", entropy_top_share=0.2))
    columns = prepared(objective, batch)
    logp_T = batch.columns["logp"].clone().requires_grad_()
    evaluate(objective, columns, batch, logp_T)[0].backward()
    entropy = batch.columns["old_entropy"][batch.mask_T]
    border = entropy.sort(descending=True).values[int(0.2 * len(entropy)) - 1]
    trained_T = batch.mask_T & (batch.columns["old_entropy"] >= border)
    # the denominator stays the number of all trained tokens
    expected_T = torch.where(trained_T, -batch.columns["advantage"] / len(entropy), 0)
    torch.testing.assert_close(logp_T.grad, expected_T, rtol=1e-6, atol=1e-9)
