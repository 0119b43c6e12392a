"""However model and batch are cut: the same loss, gradients and weights as in plain torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_scenarios as scenarios
import trainer_values as values
from safetensors.torch import load_file
from slow_sends import train_with_slow_sends
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import CriticConfig, OptimizerConfig, TrainParallel

STEPS = 3
DENSE = ("llama", "llama3", "qwen2_tied", "qwen3")


@dataclass(frozen=True, kw_only=True)
class Case:
    """To cut model and batch."""

    cuts: tuple[int, ...] = (6,)
    """Where the rows are cut into microbatches."""

    families: tuple[str, ...] = ("qwen2_tied", "qwen3")
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the setup."""

    parallel: TrainParallel


def way(cuts: tuple[int, ...] = (6,), **parallel: Any) -> Case:
    return Case(cuts=cuts, parallel=TrainParallel(dp=parallel.pop("dp", 1), **parallel))


SHAPES = {
    "tp1": replace(way(()), families=DENSE),
    "microbatches": way((2, 6, 10)),
    "tp2": replace(way(tp=2), families=DENSE),
    "pp2": replace(way((4, 8), pp=2), families=DENSE),
    "dp2": way((4,), dp=2),
    "tp2pp2": way(tp=2, pp=2),
    "sp": replace(way(tp=2, sp=True), families=DENSE),
    "selective": replace(way(), changes={"actor": values.make_actor(recompute="selective")}),
    "cp2": replace(way(cp=2), families=DENSE),
    "tp2sp_cp2": way(tp=2, sp=True, cp=2),
    "dp2_cp2": way((4,), dp=2, cp=2),
    "cp2_pp2": way((4, 8), cp=2, pp=2),
    "vpp2": replace(way((2, 6), pp=2, vpp=2), families=("deep",)),
    "uneven": replace(way(pp=2, stage_layers=(1, 4)), families=("odd",)),
    "uneven_vpp": replace(way(pp=2, vpp=2, stage_layers=(1, 1, 2, 1)), families=("odd",)),
    "overlap": replace(way(dp=2, pp=2), changes={"actor": values.make_actor(overlap=True)}),
    "all": replace(
        way((4, 8), tp=2, sp=True, cp=2, pp=2, vpp=2),
        families=("deep",),
        changes={"actor": values.make_actor(recompute="full")},
    ),
}
SLOW = {"all", "uneven", "uneven_vpp", "cp2_pp2", "dp2_cp2", "selective", "overlap"}
RELATIVE = 2e-6  # what DESIGN.md promises of loss and gradients in fp32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: values.make_model(folder, family) for family in values.FAMILIES}


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name


@pytest.fixture(scope="module", params=map(marked, SHAPES))
def runs(request, models, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """By family, what every rank of one shape found."""
    shape = SHAPES[request.param]
    out = tmp_path_factory.mktemp("export")
    folders = [models[family] for family in shape.families]
    args = (folders, shape.parallel, shape.cuts, STEPS, out)
    ranks = on_ranks(shape.parallel.num_ranks, scenarios.train, *args, **shape.changes)
    return {family: [rank[i] for rank in ranks] for i, family in enumerate(shape.families)}


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
    block, ranks = values.make_block(), next(iter(runs.values()))
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
        p = np.exp(block.columns["rollout_logp"][block.loss_mask_T].astype(float))
        q = np.exp(plain[family]["before"].astype(float))
        gap, loaded = np.abs(p - q), ranks[0]["loaded"]
        assert loaded["training/rollout_probs_diff_mean"] == pytest.approx(gap.mean(), abs=1e-6)
        assert loaded["training/rollout_probs_diff_max"] == pytest.approx(gap.max(), abs=1e-6)
        assert loaded["training/rollout_probs_diff_std"] == pytest.approx(gap.std(), abs=1e-6)
        correlation = loaded["training/rollout_actor_probs_pearson_corr"]
        assert correlation == pytest.approx(np.corrcoef(p, q)[0, 1], abs=1e-5)


def test_messages_of_an_interleaved_pipeline_may_leave_late(models, plain, tmp_path) -> None:
    shape, model = SHAPES["vpp2"], plain["deep"]
    args = ([models["deep"]], shape.parallel, shape.cuts, 2, tmp_path)
    for rank in on_ranks(shape.parallel.num_ranks, train_with_slow_sends, *args):
        reports = [(report["loss"], report["grad_norm"]) for report in rank[0]["reports"]]
        np.testing.assert_allclose(reports, model["steps"][:2], rtol=RELATIVE)


SOLVED = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}
OPTIMIZER = {"lr": 1e-3, "eps": 1e-4}
ALGORITHMS = {
    "sequence ratios": (AlgorithmConfig(preset="gspo"), {}),
    "critic": (AlgorithmConfig(estimator="gae"), SOLVED),
    "process model": (AlgorithmConfig(estimator="prime", process_model={"optimizer": OPTIMIZER}), SOLVED),
}
CUTS = {
    "tp2_sp": TrainParallel(dp=1, tp=2, sp=True),
    "cp2": TrainParallel(dp=1, cp=2),
    "pp2_vpp2": TrainParallel(dp=1, pp=2, vpp=2),
    "tp2_sp_cp2": TrainParallel(dp=1, tp=2, sp=True, cp=2),
}


@pytest.fixture(scope="module")
def on_one_rank(models) -> dict[str, dict[str, Any]]:
    return on_ranks(1, scenarios.algorithm_runs, models["deep"], (1, 1, 1), ALGORITHMS, **CRITIC)[0]


CRITIC = {"setup": {"critic": CriticConfig(optimizer=OptimizerConfig(**OPTIMIZER))}}


@pytest.mark.parametrize("cut", [pytest.param(c, marks=pytest.mark.slow) if "2_" in c else c for c in CUTS])
def test_whole_sequences_critics_and_process_models_do_not_depend_on_the_cut(
    models, on_one_rank, cut
) -> None:
    parallel = CUTS[cut]
    ranks = on_ranks(
        parallel.num_ranks, scenarios.algorithm_runs, models["deep"], parallel, ALGORITHMS, **CRITIC
    )
    for name, alone in on_one_rank.items():
        for rank in ranks:
            _compare(alone, rank[name])


def _compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    for a, b in zip(one["played"], other["played"], strict=True):
        assert a["loaded"] == pytest.approx(b["loaded"], rel=2e-6, abs=1e-6)
        for report_a, report_b in zip(a["reports"], b["reports"], strict=True):
            assert report_a["loss"] == pytest.approx(report_b["loss"], rel=RELATIVE, abs=1e-7)
            assert report_a["grad_norm"] == pytest.approx(report_b["grad_norm"], rel=RELATIVE)
            assert report_a["metrics"] == pytest.approx(report_b["metrics"], rel=1e-5, abs=1e-6)
    for logp_a, logp_b in zip(one["logps"], other["logps"], strict=True):
        np.testing.assert_allclose(logp_a, logp_b, atol=5e-6, rtol=0)


@pytest.mark.parametrize("overlap", [False, True])
def test_ranks_may_have_unequal_numbers_of_microbatches(models, overlap) -> None:
    """Of two data-parallel ranks, one has a microbatch less, then none; chunks of layers take turns."""
    block, all_rows = values.make_block(), range(12)
    shares = [[[all_rows[:3], all_rows[3:8]], [all_rows[8:]]], [[all_rows], []]]
    minibatches = [values.make_minibatch(i, rows, block) for i, rows in enumerate(shares)]
    whole = [values.make_minibatch(i, [[all_rows]], block) for i in range(2)]
    alone = on_ranks(1, scenarios.lopsided, models["deep"], (1, 1, 1), whole, False)[0]
    parallel = TrainParallel(dp=2, pp=2, vpp=2) if overlap else TrainParallel(dp=2)
    for rank in on_ranks(
        parallel.num_ranks, scenarios.lopsided, models["deep"], parallel, minibatches, overlap
    ):
        for report, expected in zip(rank, alone, strict=True):
            assert report["loss"] == pytest.approx(expected["loss"], rel=RELATIVE)
            assert report["grad_norm"] == pytest.approx(expected["grad_norm"], rel=RELATIVE)
