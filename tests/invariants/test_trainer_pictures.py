"""Models that read pictures: log-probabilities, gradients and steps equal those of transformers, on every
parallel layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import vision_values as vision
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel
from hybridrl.models.fused_experts import Part, parts
from hybridrl.reshard.hf_files import Checkpoint

SHAPES = {
    "tp1": (TrainParallel(dp=1), ()),
    "tp1 in three microbatches": (TrainParallel(dp=1), (2, 7)),
    "tp2": (TrainParallel(tp=2, dp=1), (5,)),
    "tp2 sp": (TrainParallel(tp=2, sp=True, dp=1), (5,)),
    "pp2": (TrainParallel(pp=2, dp=1), (4, 8)),
    "cp2": (TrainParallel(cp=2, dp=1), (6,)),
    "dp2": (TrainParallel(dp=2), (4,)),
    "ep2": (TrainParallel(dp=2, ep=2), (4,)),
}
FAMILIES = ["qwen3_vl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3_vl_moe", "qwen2_5_vl"))]


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tmp_path_factory):
    """(model folder, folder of what transformers made of it, its numbers)"""
    out = tmp_path_factory.mktemp(request.param)
    folder = vision.make_model(out, request.param)
    return folder, out, vision.learn_plainly(folder, out)


@pytest.mark.parametrize(
    "name", [name if name == "tp2 sp" else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_steps_on_pictures_equal_those_of_transformers(plain, name, tmp_path):
    folder, out, wanted = plain
    shape, cuts = SHAPES[name]
    has_experts = vision.spec.read(folder).num_experts > 0
    if (has_experts and name == "tp2") or (not has_experts and name == "ep2"):
        pytest.skip("experts on tensor-parallel ranks need sequence parallelism, and ep needs experts")
    ranks = on_ranks(
        shape.num_ranks, vision.learn, folder, shape, cuts, out / "gradients", tmp_path / "exported"
    )

    block = vision.make_block(vision.spec.read(folder).vision)
    for found in ranks:
        logp = found["logp_T"][block.loss_mask_T]
        assert np.abs(logp - wanted["logp"]).max() < 2e-5
        worst = max(found["error"], key=found["error"].get)
        assert found["error"][worst] < 5e-6, worst
        for report, (loss, norm) in zip(found["reports"], wanted["reports"], strict=True):
            assert report["loss"] == pytest.approx(loss, abs=1e-6)
            assert report["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert any(name.startswith("visual.") for name in ranks[0]["error"])
    _refuse_different(tmp_path / "exported", out / "trained", parts(vision.spec.read(folder)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp1 in three microbatches", "tp2 sp", "cp2"])
def test_so_do_steps_on_episodes_whose_later_turns_show_pictures(name, tmp_path):
    folder = vision.make_model(tmp_path, "qwen3_vl")
    wanted = vision.learn_plainly(folder, tmp_path, turns=True)
    shape, cuts = SHAPES[name]
    ranks = on_ranks(
        shape.num_ranks,
        vision.learn,
        folder,
        shape,
        cuts,
        tmp_path / "gradients",
        tmp_path / "exported",
        turns=True,
    )
    tower = vision.spec.read(folder).vision
    block = vision.with_turns(vision.make_block(tower), tower)
    for found in ranks:
        assert np.abs(found["logp_T"][block.loss_mask_T] - wanted["logp"]).max() < 2e-5
        worst = max(found["error"], key=found["error"].get)
        assert found["error"][worst] < 5e-6, worst


def _refuse_different(exported: Path, wanted: Path, of_experts: Mapping[str, Part]) -> None:
    """The exported weights are those of transformers after the same steps. It saves experts transposed."""
    found, plain = (Checkpoint(folder, of_experts) for folder in (exported, wanted))
    assert set(found) == set(plain)
    for name in plain:
        assert (found[name] - plain[name]).abs().max() < 1e-5, name
