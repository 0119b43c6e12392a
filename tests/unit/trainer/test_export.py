"""A checkpoint becomes a model folder without its ranks."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from layout_values import held_by
from model_values import hf_tensors, tiny
from safetensors.torch import load_file, save_file

from hybridrl.errors import CheckpointError, RunFolderError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.rank_files import Kept, collect, write
from hybridrl.trainer import committed
from hybridrl.trainer.export import export

BIAS = "mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a model with a router bias, by ranks of every kind; and the folder it began from, in
    bf16 but for that bias."""
    folder = tmp_path_factory.mktemp("run")
    layout = MegatronLayout(tiny("deepseek_v3", dtype="bfloat16"), tp=2, pp=2, ep=2, dp=2)
    unfinished, first = folder / "step.tmp", set()
    unfinished.mkdir()
    for rank, tensors in enumerate(held_by(layout)):
        shards = layout.shards(rank)
        own = {name: tensor for name, tensor in tensors.items() if shards[name] not in first}
        first |= set(shards.values())
        kept = [Kept(name, 0, {"weights": tensor.flatten()}) for name, tensor in own.items()]
        write(unfinished, "policy", rank, kept, {})
    files = collect(unfinished, "policy", layout.world_size) or {}
    committed.commit(unfinished, folder / "step", {"parts": {"policy": {"layout": asdict(layout)}}}, files)
    (folder / "source").mkdir()
    source = {
        name: tensor if BIAS in name else tensor.bfloat16()
        for name, tensor in hf_tensors(layout.spec).items()
    }
    save_file(source, folder / "source" / "model.safetensors")
    (folder / "source" / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (folder / "source" / "tokenizer.json").write_text("{}")
    return folder / "step", folder / "source"


def test_every_tensor_has_the_dtype_of_the_source_folder(folders, tmp_path: Path) -> None:
    checkpoint, source = folders
    export(checkpoint, tmp_path / "model", source)
    expected, found = (load_file(path / "model.safetensors") for path in (source, tmp_path / "model"))
    assert expected.keys() == found.keys()
    assert {tensor.dtype for name, tensor in found.items() if BIAS in name} == {torch.float32}
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in expected.items())
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"dtype": "bfloat16"}


def test_a_dtype_can_be_asked_for(folders, tmp_path: Path) -> None:
    checkpoint, source = folders
    export(checkpoint, tmp_path / "model", source, dtype=torch.float32)
    found = load_file(tmp_path / "model" / "model.safetensors")
    layout = committed.layout(committed.read(checkpoint), "policy")
    assert all(torch.equal(found[name], tensor) for name, tensor in hf_tensors(layout.spec).items())
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"dtype": "float32"}


def test_nothing_is_written_over_and_nothing_unfinished_is_read(folders, tmp_path: Path) -> None:
    checkpoint, source = folders
    with pytest.raises(RunFolderError, match="exists already"):
        export(checkpoint, source, source)
    (tmp_path / "cut").mkdir()
    with pytest.raises(CheckpointError, match="no COMMITTED"):
        export(tmp_path / "cut", tmp_path / "model", source)
    assert not (tmp_path / "model").exists()
