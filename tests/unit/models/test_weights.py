"""The weight files of a model folder against its config.json."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridrl.errors import ModelError
from hybridrl.models import tiny
from hybridrl.models.weights import INDEX, refuse_unfit_weights

FILE = "model.safetensors"
Q = "model.layers.1.self_attn.q_proj.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.random_model(tmp_path / "model", "qwen3", 0)
    return tmp_path / "model"


def save(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        refuse_unfit_weights(folder, where="my.yaml:1")
    assert refused.value.where == "my.yaml:1" and refused.value.fix
    return refused.value.what


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("tied", [True, False])
def test_whole_models_pass(tmp_path: Path, family: str, tied: bool) -> None:
    tiny.random_model(tmp_path / "model", family, 0, tied=tied)
    refuse_unfit_weights(tmp_path / "model", where="my.yaml:1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", [Q, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_value_that_is_no_number_is_said_by_name(folder: Path, value: float, dtype: str, name: str) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[name] = tensors[name].astype(dtype)
        tensors[name].reshape(-1)[-1] = value

    save(folder, spoil)
    assert f"{name} in {folder / FILE} holds NaN or infinity 1 time" in refusal(folder)


def test_nan_in_bfloat16_is_seen(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {name: torch.tensor(v).bfloat16() for name, v in load_file(folder / FILE).items()}
    save_torch(tensors, folder / FILE)
    refuse_unfit_weights(folder, where="my.yaml:1")
    tensors[Q][0, 0] = torch.nan
    save_torch(tensors, folder / FILE)
    assert refusal(folder).startswith(Q)


def halve_rows(tensors: Tensors) -> None:
    tensors[Q] = tensors[Q][::2].copy()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), f"{Q} is I8"),
        (lambda t: t.update({Q: t[Q].astype(np.uint8)}), f"{Q} is U8"),
        (lambda t: t.update({Q: t[Q].astype(np.int64)}), f"{Q} is I64"),
        (lambda t: t.pop(Q), f"lack {Q}, 1 of "),
        (lambda t: [t.pop(n) for n in list(t) if ".1." in n], "lack model.layers.1"),
        (lambda t: t.clear(), "lack model.embed_tokens.weight"),
        (halve_rows, f"{Q} is [16, 32] in "),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.bias": t[Q][0]}),
            "have model.layers.1.mlp.up_proj.bias",
        ),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q]}), "have model.layers.2.mlp"),
    ],
)
def test_other_tensors_than_config_json_says_are_named(folder: Path, change: Callable, said: str) -> None:
    save(folder, change)
    assert said in refusal(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "intermediate_size", "vocab_size", "head_dim"])
@pytest.mark.parametrize("more", [1, -1])
def test_a_config_json_of_another_model_is_refused(folder: Path, key: str, more: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[key] += more
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder)


def test_a_count_of_further_layers_that_is_text_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": "1"}
    (folder / "config.json").write_text(json.dumps(config))
    assert 'num_nextn_predict_layers = "1" in config.json is not a whole number' in refusal(folder)


def test_further_parts_may_be_there(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    names = ["model.layers.2.enorm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "visual.weight"]
    save(folder, lambda tensors: tensors.update(dict.fromkeys(names, tensors[Q])))
    refuse_unfit_weights(folder, where="my.yaml:1")


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 2000, -1])
def test_a_file_cut_short_is_named(folder: Path, kept: int) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:kept])
    assert str(folder / FILE) in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"garbage" * 9, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{]", b"\xff" * 64]
)
def test_a_file_of_another_format_is_named(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    assert str(folder / FILE) in refusal(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / FILE).rename(folder / "pytorch_model.bin")
    assert "no safetensors files" in refusal(folder)


def in_shards(folder: Path) -> dict[str, str]:
    """Writes the model as two shards and returns their index."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    names = sorted(tensors)
    index = {name: f"part-{int(i > 5)}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == part}, folder / part)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return index


def test_a_missing_or_shortened_shard_is_named(folder: Path) -> None:
    in_shards(folder)
    refuse_unfit_weights(folder, where="my.yaml:1")
    part = folder / "part-1.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    assert f"{part} has {len(content) // 2:,} bytes, {len(content):,} by its header" in refusal(folder)
    part.unlink()
    assert f"the weight file {part} is missing" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    in_shards(folder)
    (folder / INDEX).write_text(text)
    assert INDEX in refusal(folder)


def test_an_index_that_lists_what_no_file_has_is_refused(folder: Path) -> None:
    index = in_shards(folder) | {"model.more": "part-0.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    assert "lists model.more" in refusal(folder)
