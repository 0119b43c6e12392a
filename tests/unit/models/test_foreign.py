"""Checkpoints of other trainers are known by their files, and what converts them is named."""

from pathlib import Path

import pytest

from hybridrl.errors import ModelError
from hybridrl.models.foreign import recognise
from hybridrl.models.spec import read

FILES = {
    "Megatron, all iterations": ["latest_checkpointed_iteration.txt", "iter_0000010/metadata.json"],
    "Megatron, one iteration": [".metadata", "common.pt", "__0_0.distcp", "metadata.json"],
    "verl, FSDP": ["model_world_size_2_rank_0.pt", "huggingface/config.json"],
    "verl, Megatron": ["dist_ckpt/__0_0.distcp", "huggingface/config.json"],
}
SAID = {
    "Megatron, all iterations": ("Megatron checkpoint .torch_dist.", "Megatron Bridge"),
    "Megatron, one iteration": ("Megatron checkpoint .torch_dist.", "convert_torch_dist_to_hf.py"),
    "verl, FSDP": ("an FSDP checkpoint of verl", "merge --backend fsdp"),
    "verl, Megatron": ("a Megatron checkpoint of verl", "merge --backend megatron"),
}


def written(folder: Path, files: list[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_a_checkpoint_of_another_trainer_is_refused_with_its_converter(tmp_path: Path, kind: str) -> None:
    what, converter = SAID[kind]
    with pytest.raises(ModelError, match=f"is {what}, not a model|is a {what}, not a model") as caught:
        read(written(tmp_path, FILES[kind]))
    assert converter in caught.value.fix


@pytest.mark.parametrize("files", [[], ["pytorch_model.bin"], [".metadata"], ["__0_0.distcp"]])
def test_other_folders_are_not_named(tmp_path: Path, files: list[str]) -> None:
    assert recognise(written(tmp_path, files)) is None
    with pytest.raises(ModelError, match="no config.json"):
        read(tmp_path)
