"""Experts on FSDP: balance, counts and replay of choices are those of Megatron on one rank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_models as models
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

RELATIVE = 2e-6
PENALTIES = {"aux_loss": 0.3, "z_loss": 0.02}
SHAPES = {
    "x2": (TrainParallel(dp=2), (4,)),
    "tp2": (TrainParallel(dp=1, tp=2), (6,)),
    "cp2": (TrainParallel(dp=1, cp=2), (2, 6)),
    "hsdp 2x2": (TrainParallel(dp=4, shard=2), (4,)),
}
EACH = [name if name == "x2" else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_model(tmp_path_factory.mktemp("models"), "qwen3_moe")


def run(folder: Path, name: str, actor: Any) -> list[dict[str, Any]]:
    shape, cuts = SHAPES[name]
    fsdp = actor.model_copy(update={"backend": "fsdp"})
    return on_ranks(shape.num_ranks, models.route, folder, shape, cuts, fsdp)


def by_megatron(folder: Path, actor: Any) -> dict[str, Any]:
    return on_ranks(1, models.route, folder, TrainParallel(dp=1), (), actor)[0]


@pytest.mark.parametrize("recompute", ["none", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EACH)
def test_penalties_and_counts(folder, name: str, recompute: str) -> None:
    whole = by_megatron(folder, models.make_actor(PENALTIES))
    ranks = run(folder, name, models.make_actor(PENALTIES, recompute=recompute))
    for rank in ranks:
        for report, expected in zip(rank["reports"], whole["reports"], strict=True):
            assert report["grad_norm"] == pytest.approx(expected["grad_norm"], rel=RELATIVE)
            for metric in ("moe/penalty", "moe/load_max"):
                assert report["metrics"][metric] == pytest.approx(expected["metrics"][metric], rel=RELATIVE)
    np.testing.assert_array_equal(np.sum([rank["counts"] for rank in ranks], axis=0), whole["counts"])


@pytest.mark.parametrize("replay", ["none", "old_logp"])
def test_a_replayed_token_stays_with_its_experts_when_the_router_moves(folder, replay: str) -> None:
    ranks = run(folder, "x2", models.make_actor({"router_replay": replay}, recompute="full", lr=0.05))
    first, second = np.sum([rank["counts"] for rank in ranks], axis=0)
    assert (first.sum(-1) == first.sum(-1)[0]).all(), "no token is lost"
    assert np.array_equal(first, second) == (replay == "old_logp")


@pytest.mark.parametrize("name", EACH)
def test_tokens_go_where_the_engine_sent_them(folder, name: str) -> None:
    actor = models.make_actor({"router_replay": "rollout"}, lr=0.05)
    whole = by_megatron(folder, actor)
    for rank in run(folder, name, actor):
        assert rank["measured"] == pytest.approx(whole["measured"], rel=1e-5)
        for report, expected in zip(rank["reports"], whole["reports"], strict=True):
            for quantity in ("loss", "grad_norm"):
                assert report[quantity] == pytest.approx(expected[quantity], rel=1e-5)
