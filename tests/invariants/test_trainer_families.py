"""Every family, however it is cut: log-probabilities, loss, gradients and weights of plain transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_models as models
import trainer_values as values
from safetensors.torch import load_file
from torch.testing import assert_close
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

RELATIVE = 2e-6  # what DESIGN.md promises of loss and gradients in fp32
SLOW = pytest.mark.slow
SHAPES = {  # how the ranks share the work, where rows are cut into microbatches, and what is trained
    "one_rank": (TrainParallel(dp=1), (6,), tuple(models.KINDS)),
    "tp2": (
        TrainParallel(dp=1, tp=2),
        (6,),
        ("gemma2", "gemma3", "latent_dense", "qwen3_moe", "deepseek_v3"),
    ),
    "pp2": (TrainParallel(dp=1, pp=2), (6,), ("gemma2", "qwen3_moe_mixed", "deepseek_v2")),
    "ep2": (TrainParallel(dp=2, ep=2), (6,), ("qwen3_moe", "mixtral", "deepseek_v3")),
    "tp2_shared_sequence": (TrainParallel(dp=1, tp=2, sp=True), (6,), ("gemma2", "gemma3", "latent_dense")),
    "cp2": (TrainParallel(dp=1, cp=2), (6,), ("gemma2", "gemma3", "deepseek_v3", "qwen3_moe")),
    "tp2_experts_cut": (TrainParallel(dp=1, tp=2, etp=2), (6,), ("qwen3_moe", "deepseek_v2")),
    "tp2_experts_dealt": (TrainParallel(dp=1, tp=2, ep=2), (6,), ("qwen3_moe", "deepseek_v3")),
    "tp2_ep2_pp2": (TrainParallel(dp=1, tp=2, ep=2, pp=2), (6,), ("qwen3_moe", "deepseek_v2_lite")),
}
FAST = ("one_rank", "tp2", "pp2", "ep2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: models.make_model(folder, kind) for kind in models.KINDS}


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("plain")
    return {kind: models.learn_plainly(folder, out) for kind, folder in folders.items()}


@pytest.fixture(
    scope="module", params=[name if name in FAST else pytest.param(name, marks=SLOW) for name in SHAPES]
)
def runs(request, folders, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """By kind of model, what every rank of one shape found."""
    shape, cuts, kinds = SHAPES[request.param]
    out = tmp_path_factory.mktemp("out")
    ranks = on_ranks(shape.num_ranks, models.learn, [folders[kind] for kind in kinds], shape, cuts, out)
    return {kind: [rank[i] for rank in ranks] for i, kind in enumerate(kinds)}


def test_what_was_imported_is_exported_bitwise(runs, folders) -> None:
    for kind, ranks in runs.items():
        source = load_file(folders[kind] / "model.safetensors")
        exported = load_file(ranks[0]["out"] / "imported" / kind / "model.safetensors")
        assert source.keys() == exported.keys()
        assert all(exported[name].equal(tensor) for name, tensor in source.items())


def test_logprobs_equal_transformers(runs, plain) -> None:
    mask_T = values.make_block().loss_mask_T
    for kind, ranks in runs.items():
        for rank in ranks:
            np.testing.assert_allclose(rank["logp_T"][mask_T], plain[kind]["logp"], atol=5e-6, rtol=0)


def test_losses_and_gradient_norms_equal_plain_torch(runs, plain) -> None:
    for kind, ranks in runs.items():
        for report, (loss, grad_norm) in zip(ranks[0]["reports"], plain[kind]["steps"], strict=True):
            assert report["loss"] == pytest.approx(loss, rel=RELATIVE), kind
            assert report["grad_norm"] == pytest.approx(grad_norm, rel=RELATIVE), kind


def test_weights_after_the_steps_equal_adamw(runs, plain) -> None:
    """Each step moves a weight by at most lr = 1e-3; eps = 1e-4 keeps Adam from blowing up rounding."""
    for kind, ranks in runs.items():
        expected = load_file(plain[kind]["weights"] / "model.safetensors")
        trained = load_file(ranks[0]["out"] / "trained" / kind / "model.safetensors")
        for name, weight in trained.items():
            assert_close(
                weight, expected[name], atol=1e-6, rtol=1e-6, msg=lambda said, n=name: f"{n}: {said}"
            )


def test_the_bias_of_a_router_chooses_and_is_not_trained(runs, folders) -> None:
    for kind in runs.keys() & {"deepseek_v3"}:
        source = load_file(folders[kind] / "model.safetensors")
        trained = load_file(runs[kind][0]["out"] / "trained" / kind / "model.safetensors")
        biases = [name for name in source if name.endswith("e_score_correction_bias")]
        assert biases
        assert all(source[name].abs().max() > 0.01 and trained[name].equal(source[name]) for name in biases)
