"""Checkpoints with all experts of a layer in two tensors."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridrl.errors import ModelError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.models.fused_experts import as_stored, fused, parts
from hybridrl.models.tiny_vision import vision_model
from hybridrl.models.weights import refuse_unfit_weights
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.reshard.hf_files import Checkpoint

GATE_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "moe"
    vision_model(path, "qwen3_vl_moe", 0)
    return path


def turned(folder, to):
    """The same model as transformers saves it."""
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    save_file(
        {n: t.mT.contiguous() if ".experts." in n else t for n, t in stored.items()}, to / "model.safetensors"
    )
    return to


def test_every_expert_is_where_transformers_has_it(folder, tmp_path) -> None:
    stored, found = load_file(folder / "model.safetensors"), parts(spec.read(folder))
    for orientation in (folder, turned(folder, tmp_path / "turned")):
        checkpoint = Checkpoint(orientation, found)
        names = set(HFLayout(spec.read(folder)).shards(0))
        assert names == set(checkpoint) and GATE_UP not in names
        gate, up = (checkpoint[f"{GATE_UP[:-12]}2.{half}_proj.weight"] for half in ("gate", "up"))
        assert torch.equal(torch.cat([gate, up]).T, stored[GATE_UP][2])
        assert checkpoint.shape(f"{GATE_UP[:-12]}2.up_proj.weight") == tuple(up.shape)


def test_the_files_are_made_of_the_tensors_of_the_table(folder) -> None:
    model, checkpoint = spec.read(folder), Checkpoint(folder, parts(spec.read(folder)))
    tensors = {name: checkpoint[name].numpy() for name in HFLayout(model).shards(0)}
    stored = load_file(folder / "model.safetensors")
    made = fused(tensors, model, np.empty)
    assert made.keys() == stored.keys()
    assert all(np.array_equal(made[name], stored[name].numpy()) for name in made)
    assert fused({"a": tensors[next(iter(tensors))]}, model, np.empty).keys() == {"a"}
    shapes = as_stored({name: tensor.shape for name, tensor in tensors.items()}, parts(model))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in stored.items()}


def test_ranks_export_what_they_have_loaded(folder, tmp_path) -> None:
    layout = MegatronLayout(spec.read(folder), tp=2)
    ranks = [{n: torch.empty(s.shape) for n, s in layout.shards(rank).items()} for rank in range(2)]
    for rank, tensors in enumerate(ranks):
        load_hf(folder, layout, rank, tensors)
    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        export = partial(export_hf, tmp_path / "out", layout, source_folder=folder, barrier=barrier.wait)
        for done in [pool.submit(export, rank, tensors) for rank, tensors in enumerate(ranks)]:
            done.result(timeout=60)
    found, wanted = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_experts_as_transformers_saves_them_are_refused_before_an_engine_reads_them(folder, tmp_path) -> None:
    refuse_unfit_weights(folder, where="model.path")
    with pytest.raises(
        ModelError, match=r"experts.gate_up_proj is \[4, 96, 64\].*transpose the last two axes"
    ):
        refuse_unfit_weights(turned(folder, tmp_path / "turned"), where="model.path")


def test_weights_of_experts_that_are_not_normalized_are_refused(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["norm_topk_prob"] = False
    with pytest.raises(ModelError, match="norm_topk_prob = false is not supported"):
        spec.from_config(config, where="config.json")
