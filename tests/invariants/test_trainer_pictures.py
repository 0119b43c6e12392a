"""Models that read pictures: log-probabilities, gradients and steps equal those of transformers, on every
parallel layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_values as values
import vision_values as vision
from trainer_ranks import on_ranks

from hybridrl.batch import TokenBlock
from hybridrl.config.images import VisionConfig
from hybridrl.config.training import ActorConfig, TrainParallel
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
    "fsdp x2": (TrainParallel(dp=2), (4,)),
    "fsdp tp2": (TrainParallel(tp=2, dp=1), (5,)),
    "fsdp cp2 keys": (TrainParallel(cp=2, dp=1, cp_exchange="keys"), (6,)),
    "fsdp cp2 heads": (TrainParallel(cp=2, dp=1, cp_exchange="heads"), (6,)),
    "fsdp hsdp 2x2": (TrainParallel(dp=4, shard=2), (4,)),
    "fsdp x2 tp2": (TrainParallel(tp=2, dp=2), (4,)),
    "fsdp x2 cp2": (TrainParallel(cp=2, dp=2), (4,)),
}
FAST = ("tp2 sp", "fsdp x2", "fsdp tp2", "fsdp cp2 keys")
BLIND = range(6, 9)
"""Rows without pictures."""

ONE_BLIND_RANK = [[[0, 1, 2, 3], [4, 5, 9, 10, 11]], [[*BLIND[:1]], [*BLIND[1:]]]]
FAMILIES = [
    "qwen3_vl",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3_vl_moe", "qwen2_5_vl")),
]


def actor_of(name: str, mode: str = "train", **options: Any) -> ActorConfig:
    """The actor of a layout; its name begins with the backend, if that is not Megatron."""
    backend = "fsdp" if name.startswith("fsdp") else "megatron"
    changes = {"backend": backend, "vision": VisionConfig(mode=mode)}  # type: ignore[arg-type]
    return values.make_actor(**options).model_copy(update=changes)


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tmp_path_factory):
    """(model folder, folder of what transformers made of it, its numbers)"""
    out = tmp_path_factory.mktemp(request.param)
    folder = vision.make_model(out, request.param)
    return folder, out, vision.learn_plainly(folder, out)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_steps_on_pictures_equal_those_of_transformers(plain, name, tmp_path):
    folder, out, wanted = plain
    shape, cuts = SHAPES[name]
    has_experts = vision.spec.read(folder).num_experts > 0
    if (has_experts and name == "tp2") or (not has_experts and name == "ep2"):
        pytest.skip("experts on tensor-parallel ranks need sequence parallelism, and ep needs experts")
    ranks = on_ranks(
        shape.num_ranks,
        vision.learn,
        folder,
        shape,
        cuts,
        out / "gradients",
        tmp_path / "exported",
        actor=actor_of(name),
    )

    block = vision.make_block(vision.spec.read(folder).vision)
    _refuse_other_gradients(ranks, wanted, block)
    _refuse_other_steps(ranks, wanted)
    assert any("visual." in name for name in ranks[0]["error"])
    _refuse_different(tmp_path / "exported", out / "trained", parts(vision.spec.read(folder)))


@pytest.mark.parametrize("name", ["fsdp x2", pytest.param("dp2", marks=pytest.mark.slow)])
def test_a_rank_whose_rows_have_no_pictures_takes_the_same_steps(plain, name, tmp_path):
    folder, out, wanted = plain
    args = (folder, SHAPES[name][0], (), out / "gradients", tmp_path / "exported")
    block = vision.make_block(vision.spec.read(folder).vision)
    assert not any(len(block.columns["picture_size"][row]) for row in BLIND)
    ranks = on_ranks(2, vision.learn, *args, rows=ONE_BLIND_RANK, actor=actor_of(name))
    _refuse_other_gradients(ranks, wanted, block)
    _refuse_other_steps(ranks, wanted)


def test_so_does_one_that_computes_in_bf16(plain, tmp_path):
    """Gradients of several microbatches are added up in fp32, and those of the last one are not."""
    folder, out, wanted = plain
    if vision.spec.read(folder).num_experts:
        pytest.skip("other experts are chosen in bf16")
    args = (folder, SHAPES["fsdp x2"][0], (), out / "gradients", tmp_path / "exported")
    half = actor_of("fsdp x2", precision="bf16")
    ranks = on_ranks(2, vision.learn, *args, rows=ONE_BLIND_RANK, actor=half)
    for found in ranks:
        for report, (loss, norm) in zip(found["reports"], wanted["reports"], strict=True):
            assert report["loss"] == pytest.approx(loss, abs=2e-2)
            assert report["grad_norm"] == pytest.approx(norm, rel=0.2)
    assert max(vision.errors(ranks).values()) < 0.2


@pytest.mark.parametrize("name", ["fsdp x2", pytest.param("tp2 sp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["frozen", "projector"])
def test_what_is_frozen_of_the_tower_stays_and_the_rest_has_its_gradients(plain, name, mode, tmp_path):
    folder, out, wanted = plain
    shape, cuts = SHAPES[name]
    args = (folder, shape, cuts, out / "gradients", tmp_path / "exported")
    block = vision.make_block(vision.spec.read(folder).vision)
    ranks = on_ranks(shape.num_ranks, vision.learn, *args, actor=actor_of(name, mode))
    _refuse_other_gradients(ranks, wanted, block)
    trained = {tensor for found in ranks for tensor in found["error"] if "visual." in tensor}
    assert all("merger" in tensor for tensor in trained) and bool(trained) == (mode == "projector")
    of_experts = parts(vision.spec.read(folder))
    before, after = (Checkpoint(one, of_experts) for one in (folder, tmp_path / "exported"))
    for tensor in before:
        moves = "visual." not in tensor or (mode == "projector" and "merger" in tensor)
        assert torch.equal(before[tensor], after[tensor]) != moves, tensor


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp1 in three microbatches", "tp2 sp", "cp2", "fsdp x2", "fsdp cp2 keys"])
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
        actor=actor_of(name),
    )
    tower = vision.spec.read(folder).vision
    block = vision.with_turns(vision.make_block(tower), tower)
    _refuse_other_gradients(ranks, wanted, block)


@pytest.mark.parametrize(
    ("before", "after", "mode"),
    [
        ("fsdp x2", "tp2 sp", "projector"),
        pytest.param("tp2 sp", "fsdp x2", "train", marks=pytest.mark.slow),
        pytest.param("fsdp tp2", "fsdp x2 cp2", "train", marks=pytest.mark.slow),
        pytest.param("fsdp hsdp 2x2", "dp2", "frozen", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_in_any_layout(plain, before, after, mode, tmp_path):
    folder, saved = plain[0], tmp_path / "saved"

    def run(name: str, function: Any) -> list[dict[str, Any]]:
        shape = SHAPES[name][0]
        return on_ranks(shape.num_ranks, function, folder, shape, actor_of(name, mode), saved)

    wanted = run(before, vision.halfway)[0]["reports"]
    for rank in run(after, vision.goes_on):
        for found, usual in zip(rank["reports"], wanted, strict=True):
            assert found["loss"] == pytest.approx(usual["loss"], abs=1e-6)
            assert found["grad_norm"] == pytest.approx(usual["grad_norm"], rel=1e-5)


def _refuse_other_gradients(
    ranks: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any], block: TokenBlock
) -> None:
    for found in ranks:
        logp = found["logp_T"][block.loss_mask_T]
        assert np.abs(logp - wanted["logp"]).max() < 2e-5
    error = vision.errors(ranks)
    worst = max(error, key=lambda name: error[name])
    assert error[worst] < 5e-6, worst


def _refuse_other_steps(ranks: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> None:
    for found in ranks:
        for report, (loss, norm) in zip(found["reports"], wanted["reports"], strict=True):
            assert report["loss"] == pytest.approx(loss, abs=1e-6)
            assert report["grad_norm"] == pytest.approx(norm, rel=1e-5)


def _refuse_different(exported: Path, wanted: Path, of_experts: Mapping[str, Part]) -> None:
    """The exported weights are those of transformers after the same steps. It saves experts transposed."""
    found, plain = (Checkpoint(folder, of_experts) for folder in (exported, wanted))
    assert set(found) == set(plain)
    for name in plain:
        assert (found[name] - plain[name]).abs().max() < 1e-5, name
