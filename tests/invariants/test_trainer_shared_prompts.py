"""Computing each prompt once changes neither loss nor gradient nor log-probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_models
import trainer_shared_prompts
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import MoEConfig, TrainParallel

RELATIVE = 2e-6
DENSE = ("qwen2_tied", "qwen3")
FAMILIES = (*DENSE, "latent_dense", "qwen3_moe", "deepseek_v2", "deepseek_v3")
LAYOUTS = {
    "alone": TrainParallel(dp=1),
    "tp2": TrainParallel(dp=1, tp=2),
    "pp2": TrainParallel(dp=1, pp=2),
    "dp2": TrainParallel(dp=2),
    "cp2": TrainParallel(dp=1, cp=2),
    "ep2": TrainParallel(dp=2, ep=2),
}
CUTS = ((6,), (2, 4))
FAST = {(family, layout, cuts) for family in DENSE for layout in LAYOUTS for cuts in CUTS}
FAST |= {
    ("latent_dense", "tp2", (2, 4)),
    ("qwen3_moe", "pp2", (6,)),
    ("deepseek_v3", "ep2", (2, 4)),
    ("deepseek_v2", "cp2", (2, 4)),
}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow, id="-".join(map(str, case)))
    for case in ((family, layout, cuts) for family in FAMILIES for layout in LAYOUTS for cuts in CUTS)
    if case[1] != "ep2" or case[0] not in (*DENSE, "latent_dense")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model(folder: Path, family: str) -> Path:
    """The family's model, made when a test first asks for it."""
    if (folder / family).exists():
        return folder / family
    make = values.make_model if family in values.FAMILIES else trainer_models.make_model
    return make(folder, family)


@pytest.mark.parametrize(("family", "layout", "cuts"), CASES)
def test_steps_are_those_of_whole_trajectories(
    folder: Path, family: str, layout: str, cuts: tuple[int, ...]
) -> None:
    check(folder, family, LAYOUTS[layout], cuts)


OPTIONS = {
    "sequence_parallel": ("tp2", {"sp": True}, {}),
    "two_chunks_each": ("cp2", {"cp": 3}, {}),
    "tensors_and_contexts": ("cp2", {"tp": 2}, {}),
    "recompute": ("alone", {}, {"recompute": "full"}),
    "recompute_attention": ("pp2", {}, {"recompute": "selective"}),
}
"""Layout, changes of it, changes of the actor."""


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", ["qwen3", "latent_dense", "deepseek_v3"])
def test_options_of_the_actor_change_nothing(folder: Path, family: str, option: str) -> None:
    layout, changes, actor = OPTIONS[option]
    check(folder, family, LAYOUTS[layout].model_copy(update=changes), (2, 4), **actor)


EXPERT_OPTIONS = {
    "penalties": {"aux_loss": 0.3, "z_loss": 0.02},
    "old_logp": {"router_replay": "old_logp"},
    "rollout": {"router_replay": "rollout"},
}


@pytest.mark.parametrize("layout", [pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS])
@pytest.mark.parametrize("option", EXPERT_OPTIONS)
def test_experts_are_balanced_and_replayed_as_with_whole_trajectories(
    folder: Path, option: str, layout: str
) -> None:
    check(folder, "deepseek_v3", LAYOUTS[layout], (2, 4), moe=MoEConfig(**EXPERT_OPTIONS[option]))


@pytest.mark.parametrize("layout", ["dp2", pytest.param("tp2", marks=pytest.mark.slow)])
def test_a_replayed_prompt_stays_with_its_experts_whatever_answers_share_it(
    folder: Path, layout: str
) -> None:
    moe, optimizer = MoEConfig(router_replay="old_logp"), values.make_actor(lr=0.05).optimizer
    changes = {"moe": moe, "optimizer": optimizer}
    given = (model(folder, "deepseek_v3"), LAYOUTS[layout], (2, 4), changes)
    ranks = on_ranks(2, trainer_shared_prompts.steps, *given)
    shared, whole = (sum(found[share]["counts"] for found in ranks)[:2] for share in (True, False))
    np.testing.assert_array_equal(shared[0], whole[0])
    np.testing.assert_array_equal(shared[1], shared[0])


def check(folder: Path, family: str, layout: TrainParallel, cuts: tuple[int, ...], **actor: Any) -> None:
    given = (model(folder, family), layout, cuts, actor)
    ranks = on_ranks(layout.num_ranks, trainer_shared_prompts.steps, *given)
    tokens = {share: sum(found[share]["tokens"] for found in ranks) for share in (True, False)}
    assert tokens[True] < tokens[False]
    for found in ranks:
        shared, whole = found[True], found[False]
        for one, other in zip(shared["reports"], whole["reports"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=RELATIVE, abs=RELATIVE)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=RELATIVE)
            for metric in ("moe/penalty", "moe/load_max"):
                given = other["metrics"].get(metric)
                assert one["metrics"].get(metric) == (given and pytest.approx(given, rel=RELATIVE))
        assert shared["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
        np.testing.assert_allclose(shared["old_logp"], whole["old_logp"], rtol=RELATIVE, atol=2e-6)
        for name, weight in whole["weights"].items():
            np.testing.assert_allclose(shared["weights"][name], weight, atol=2e-6)
