"""Balance of experts and replay of their choice: the same however model and batch are cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_models as models
import trainer_scenarios as scenarios
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.models.spec import read
from hybridrl.trainer.experts import EngineExperts
from hybridrl.trainer.setup import make_layout

RELATIVE = 2e-6
PENALTIES = {"aux_loss": 0.3, "z_loss": 0.02}
SHAPES = {
    "microbatches": (TrainParallel(dp=1), (2, 6, 10)),
    "dp2": (TrainParallel(dp=2), (4,)),
    "ep2": (TrainParallel(dp=2, ep=2), (4,)),
    "tp2": (TrainParallel(dp=1, tp=2), (6,)),
    "cp2": (TrainParallel(dp=1, cp=2), (6,)),
    "pp2": (TrainParallel(dp=1, pp=2), (6,)),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SHAPES if name not in ("ep2", "tp2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_model(tmp_path_factory.mktemp("models"), "deepseek_v3")


def run(folder: Path, shape: TrainParallel, cuts: tuple[int, ...], actor: Any) -> list[dict[str, Any]]:
    return on_ranks(shape.num_ranks, models.route, folder, shape, cuts, actor)


@pytest.fixture(scope="module")
def whole(folder) -> dict[str, Any]:
    """One rank, one microbatch."""
    return run(folder, TrainParallel(dp=1), (), models.make_actor(PENALTIES))[0]


def test_penalties_move_the_gradient(folder, whole) -> None:
    without = run(folder, TrainParallel(dp=1), (), models.make_actor({}))[0]["reports"][0]
    report = whole["reports"][0]
    assert report["loss"] == without["loss"]
    assert report["metrics"]["moe/penalty"] > 0
    assert abs(report["grad_norm"] / without["grad_norm"] - 1) > 1e-3
    assert "moe/penalty" not in without["metrics"]


@pytest.mark.parametrize("name", ["ep2", "tp2", *SLOW])
def test_penalties_and_counts_do_not_depend_on_the_cut(folder, whole, name) -> None:
    shape, cuts = SHAPES[name]
    for rank in run(folder, shape, cuts, models.make_actor(PENALTIES)):
        for report, expected in zip(rank["reports"], whole["reports"], strict=True):
            assert report["grad_norm"] == pytest.approx(expected["grad_norm"], rel=RELATIVE)
            for metric in ("moe/penalty", "moe/load_max"):
                found = report["metrics"][metric]
                assert found == pytest.approx(expected["metrics"][metric], rel=RELATIVE)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("replay", ["none", "old_logp"])
def test_a_replayed_token_stays_with_its_experts_when_the_router_moves(folder, replay, recompute) -> None:
    actor = models.make_actor({"router_replay": replay}, recompute=recompute, lr=0.05)
    ranks = run(folder, TrainParallel(dp=2), (4,), actor)
    first, second = np.sum([rank["counts"] for rank in ranks], axis=0)
    assert (first.sum(-1) == first.sum(-1)[0]).all(), "no token is lost"
    assert np.array_equal(first, second) == (replay == "old_logp")


@pytest.fixture(scope="module")
def as_the_engine(folder) -> dict[str, Any]:
    return run(folder, TrainParallel(dp=1), (), models.make_actor({"router_replay": "rollout"}, lr=0.05))[0]


@pytest.mark.parametrize("name", ["ep2", "tp2", *SLOW])
def test_tokens_go_where_the_engine_sent_them_however_the_model_is_cut(folder, as_the_engine, name) -> None:
    shape, cuts = SHAPES[name]
    actor = models.make_actor({"router_replay": "rollout"}, recompute="full", lr=0.05)
    for rank in run(folder, shape, cuts, actor):
        assert rank["measured"] == pytest.approx(as_the_engine["measured"], rel=1e-5)
        for report, expected in zip(rank["reports"], as_the_engine["reports"], strict=True):
            for quantity in ("loss", "grad_norm"):
                assert report[quantity] == pytest.approx(expected[quantity], rel=1e-5)


def test_the_engines_choice_holds_in_all_passes_and_what_differs_is_told(folder, as_the_engine) -> None:
    first, second = as_the_engine["counts"]
    model = read(folder)
    layers, planted = list(model.layers("moe")), []
    for block in values.make_batch([]).blocks:
        told = models.engine_chose(block, model)
        for row in map(block.row, range(len(block))):
            trained = np.flatnonzero(block.loss_mask_T[row])
            if len(trained):  # what comes before the last trained token is run
                planted.append(told.columns["experts"][row][: trained[-1], layers])
    layer_of = range(len(layers))
    expected = [
        np.bincount(np.concatenate(planted)[:, i].ravel(), minlength=model.num_experts) for i in layer_of
    ]
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
    assert 0.5 < as_the_engine["measured"]["moe/engine_differs"] <= 1


def test_answers_without_experts_cannot_be_replayed() -> None:
    with pytest.raises(ConfigError, match="router_replay=old_logp"):
        EngineExperts([values.make_block()])


def test_a_model_without_experts_is_not_balanced(tmp_path) -> None:
    dense = values.make_model(tmp_path, "qwen3")
    for moe in ({"aux_loss": 0.1}, {"z_loss": 0.1}, {"router_replay": "old_logp"}):
        setup = values.make_setup(0, "", dense, (1, 1, 1), actor=models.make_actor(moe))
        with pytest.raises(ConfigError, match=f"actor.moe.{next(iter(moe))}.*no experts"):
            make_layout(setup)


def test_a_model_with_experts_resumes_bit_for_bit(folder, tmp_path) -> None:
    found = on_ranks(2, scenarios.resume, folder, TrainParallel(dp=2, ep=2), tmp_path / "saved")
    for rank in found:
        (through, weights), (again, same) = rank["through"], rank["again"]
        assert through == again
        assert all(np.array_equal(weights[name], same[name]) for name in weights)
