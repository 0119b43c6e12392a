"""However model and batch are cut: the same loss, gradients and weights as in plain torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from safetensors.torch import load_file
from trainer_ranks import on_ranks

STEPS = 3
SHAPES = {  # (tp, pp, dp), and where the rows are cut into microbatches
    "tp1": ((1, 1, 1), ()),
    "microbatches": ((1, 1, 1), (2, 6, 10)),
    "tp2": ((2, 1, 1), (6,)),
    "pp2": ((1, 2, 1), (4, 8)),
    "dp2": ((1, 1, 2), (4,)),
    "tp2pp2": ((2, 2, 1), (6,)),
}
RELATIVE = 2e-6  # what DESIGN.md promises of loss and gradients in fp32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: values.make_model(folder, family) for family in values.FAMILIES}


@pytest.fixture(scope="module", params=SHAPES)
def runs(request, models, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """By family, what every rank of one shape found."""
    shape, cuts = SHAPES[request.param]
    out = tmp_path_factory.mktemp("export")
    folders = list(models.values())
    ranks = on_ranks(int(np.prod(shape)), scenarios.train, folders, shape, cuts, STEPS, out)
    return {family: [rank[i] for rank in ranks] for i, family in enumerate(models)}


@pytest.fixture(scope="module")
def plain(models) -> dict[str, dict[str, Any]]:
    """The same by transformers and torch, one sequence at a time."""
    found, block, batch = {}, values.make_block(), values.make_batch([])
    for family, folder in models.items():
        setup, model = values.make_setup(0, "", folder, (1, 1, 1)), values.load_plain(folder)
        with torch.no_grad():
            before = torch.cat(values.plain_logp(model, block, setup.temperature)).numpy()
        steps = list(values.plain_steps(model, block, batch.advantage_N, setup, STEPS))
        found[family] = {"before": before, "steps": steps, "weights": model.state_dict()}
    return found


def test_logprobs_equal_transformers(runs, plain) -> None:
    mask_T = values.make_block().loss_mask_T
    for family, ranks in runs.items():
        for rank in ranks:
            np.testing.assert_allclose(rank["before"][mask_T], plain[family]["before"], atol=5e-6, rtol=0)
            assert not rank["before"][~mask_T].any()


def test_losses_and_gradient_norms_equal_plain_torch(runs, plain) -> None:
    for family, ranks in runs.items():
        for report, (loss, grad_norm) in zip(ranks[0]["reports"], plain[family]["steps"], strict=True):
            assert report["loss"] == pytest.approx(loss, rel=RELATIVE)
            assert report["grad_norm"] == pytest.approx(grad_norm, rel=RELATIVE)


def test_weights_after_three_steps_equal_adamw(runs, plain) -> None:
    """Each step moves a weight by at most lr = 1e-3; eps = 1e-4 keeps Adam from blowing up rounding."""
    for family, ranks in runs.items():
        exported = load_file(ranks[0]["export"] / "model.safetensors")
        for name, weight in exported.items():
            torch.testing.assert_close(weight, plain[family]["weights"][name], atol=1e-6, rtol=1e-6)


def test_transformers_reads_the_exported_model_and_finds_the_trainers_logprobs(runs) -> None:
    block, ranks = values.make_block(), runs["qwen2_tied"]
    model = values.load_plain(ranks[0]["export"])
    with torch.no_grad():
        exported = torch.cat(values.plain_logp(model, block, 0.8)).numpy()
    np.testing.assert_allclose(exported, ranks[0]["after"][block.loss_mask_T], atol=1e-5, rtol=0)


def test_the_first_ratio_is_exactly_one(runs) -> None:
    for ranks in runs.values():
        first, second = (report["metrics"]["actor/ratio_max_abs_err"] for report in ranks[0]["reports"][:2])
        assert first == 0.0
        assert second > 0.0


def test_every_rank_reports_the_same(runs) -> None:
    for ranks in runs.values():
        for rank in ranks[1:]:
            assert rank["loaded"] == ranks[0]["loaded"]
            assert rank["reports"] == ranks[0]["reports"]
            np.testing.assert_array_equal(rank["after"], ranks[0]["after"])


def test_the_agreement_with_the_engine_is_over_all_trained_tokens(runs, plain) -> None:
    block = values.make_block()
    for family, ranks in runs.items():
        p = np.exp(block.rollout_logp_T[block.loss_mask_T].astype(float))
        q = np.exp(plain[family]["before"].astype(float))
        gap, loaded = np.abs(p - q), ranks[0]["loaded"]
        assert loaded["training/rollout_probs_diff_mean"] == pytest.approx(gap.mean(), abs=1e-6)
        assert loaded["training/rollout_probs_diff_max"] == pytest.approx(gap.max(), abs=1e-6)
        assert loaded["training/rollout_probs_diff_std"] == pytest.approx(gap.std(), abs=1e-6)
        correlation = loaded["training/rollout_actor_probs_pearson_corr"]
        assert correlation == pytest.approx(np.corrcoef(p, q)[0, 1], abs=1e-5)
