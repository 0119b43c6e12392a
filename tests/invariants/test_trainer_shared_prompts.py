"""Computing each prompt once changes neither loss nor gradient nor log-probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_models
import trainer_shared_prompts
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

RELATIVE = 2e-6
DENSE = ("qwen2_tied", "qwen3")
LATENT = ("latent_dense",)
LAYOUTS = {
    "alone": TrainParallel(dp=1),
    "tp2": TrainParallel(dp=1, tp=2),
    "pp2": TrainParallel(dp=1, pp=2),
    "dp2": TrainParallel(dp=2),
}
CUTS = ((6,), (2, 4))
FAST = {
    (family, layout, cuts) for family in DENSE for layout in ("alone", "tp2", "pp2", "dp2") for cuts in CUTS
}
FAST |= {("latent_dense", "tp2", (2, 4))}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow, id="-".join(map(str, case)))
    for case in ((f, layout, cuts) for f in (*DENSE, *LATENT) for layout in LAYOUTS for cuts in CUTS)
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
    "recompute": ("alone", {}, {"recompute": "full"}),
    "recompute_attention": ("pp2", {}, {"recompute": "selective"}),
}
"""Layout, changes of it, changes of the actor."""


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", ["qwen3", "latent_dense"])
def test_options_of_the_actor_change_nothing(folder: Path, family: str, option: str) -> None:
    layout, changes, actor = OPTIONS[option]
    check(folder, family, LAYOUTS[layout].model_copy(update=changes), (2, 4), **actor)


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
        assert shared["reports"][0]["metrics"]["actor/ratio_max_abs_err"] == 0.0
        np.testing.assert_allclose(shared["old_logp"], whole["old_logp"], rtol=RELATIVE, atol=2e-6)
        for name, weight in whole["weights"].items():
            np.testing.assert_allclose(shared["weights"][name], weight, atol=2e-6)
