"""A checkpoint becomes a model folder without its ranks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_values import flip_a_byte, write_checkpoint
from model_values import hf_tensors, tiny
from safetensors.torch import load_file, save_file

from hybridrl.errors import CheckpointError, RunFolderError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer import committed
from hybridrl.trainer.adapters import write_peft
from hybridrl.trainer.export import export

BIAS = "mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a model with a router bias, by ranks of every kind; and the folder it began from, in
    bf16 but for that bias."""
    folder = tmp_path_factory.mktemp("run")
    layout = MegatronLayout(tiny("deepseek_v3", dtype="bfloat16"), tp=2, pp=2, ep=2, dp=2)
    write_checkpoint(folder / "step", layout=layout)
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


def test_nothing_is_made_of_a_damaged_checkpoint(folders, tmp_path: Path) -> None:
    checkpoint, source = folders
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    file = sorted(damaged.glob("policy.*"))[0]
    flip_a_byte(file)
    for made_of in (export, write_peft):
        with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
            made_of(damaged, tmp_path / "model", source)
    assert not (tmp_path / "model").exists()
