"""Our plans put into an SGLang rank what SGLang's own loader puts there: every name, element and pad."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_values import hf_tensors
from safetensors.torch import save_file
from sglang_models import cases, orders

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.models.tiny_vision import vision_model
from hybridrl.reshard.checkpoint import load_hf

DENSE, MIXED = "1,2,4,8", "1,2,2:2,4:2"
MODELS = {
    "llama": DENSE,
    "llama-bias-tied": DENSE,
    "qwen2": DENSE,
    "qwen3-tied": f"{DENSE},4:1:2",
    "qwen3-bias": f"{DENSE},4:1:2",
    "qwen3-moe": f"{MIXED},4:4,2:2:2,4:2:2",
    "mixtral": MIXED,
    "deepseek-v2": f"{MIXED},4:2:2",
    "deepseek-v2-lite": MIXED,
    "deepseek-v3": f"{MIXED},4:4:4,4:2:2",
    "gemma2": "1,2",
    "gemma3": "1,2",
}
"""TP[:EP[:DP attention]] of each."""


WITH_TOWER = {"qwen3_vl": "1", "qwen3_vl_moe": "1", "qwen2_5_vl": "1"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(folder, sizes) -> parameters of every rank, by SGLang."""
    root = tmp_path_factory.mktemp("models")
    told = orders(root, MODELS)
    for name in MODELS:
        save_file(hf_tensors(read(root / name)), root / name / "model.safetensors")
    for name, sizes in WITH_TOWER.items():
        vision_model(root / name, name, 0, tower={"patch_size": 14})
        told.append(f"{root / name}={sizes}")
    program = Path(__file__).parents[2] / "support" / "sglang_loader.py"
    subprocess.run([sys.executable, str(program), str(root / "out.pt"), *told], check=True, timeout=600)
    found = torch.load(root / "out.pt", weights_only=True)
    return {(Path(folder).name, sizes): (Path(folder), ranks) for (folder, sizes), ranks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), cases(MODELS | WITH_TOWER))
def test_equals_the_loader_of_sglang(loaded, model, sizes):
    folder, ranks = loaded[model, sizes]
    tp, ep, dp = (*map(int, sizes.split(":")), 1, 1)[:3]
    layout = SGLangLayout(read(folder), tp=tp, ep=ep, dp_attention=dp, dp_lm_head=dp > 1)
    for rank, theirs in enumerate(ranks):
        ours = {name: torch.full(shard.shape, 7.0) for name, shard in layout.shards(rank).items()}
        load_hf(folder, layout, rank, ours)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), (rank, name)
