"""SGLang's own models in block FP8: a swap writes the bits that their loader reads from a checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fp8_values import checkpoint, engine_quantiser, same_bits
from safetensors.torch import save_file
from sglang_models import cases, orders
from swap_scenarios import shard_of

from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm

ROOT = Path(__file__).parents[3]
MODELS = {
    "llama": "1",
    "qwen2": "1",
    "qwen3-tied": "1,2",
    "gemma2": "1",
    "gemma3": "1",
    "mixtral": "1,2:2",
    "qwen3-moe": "1,2,2:2",
    "deepseek-v2": "2",
    "deepseek-v3": "1,2,2:2",
}
"""TP[:EP] of each."""


def quantised_checkpoint(spec):
    """The tensors of a checkpoint in block FP8, by SGLang's quantiser."""
    layout, found = SGLangLayout(spec, fp8=True), {}
    fp8 = {held.param for held in layout.holdings if held.fp8}
    params = {
        n: held.param for held in HFLayout(spec).holdings for i in held.layers for n, _ in held.shards(i)
    }
    for name, tensor in checkpoint(spec).items():
        if params[name] in fp8:
            found[name], found[f"{name}_scale_inv"] = engine_quantiser()(tensor)
        else:
            found[name] = tensor.bfloat16()
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(model, sizes) -> what SGLang's model says of each rank."""
    root = tmp_path_factory.mktemp("models")
    told = orders(root, MODELS, in_blocks=True)
    for name in MODELS:
        save_file(quantised_checkpoint(read(root / name)), root / name / "model-fp8.safetensors")
    program = ROOT / "tests" / "support" / "sglang_fp8.py"
    command = [sys.executable, str(program), str(root / "out.pt"), *told]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=500)
    found = torch.load(root / "out.pt", weights_only=True)
    return {
        (Path(folder).name, sizes): (read(Path(folder)), ranks) for (folder, sizes), ranks in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), cases(MODELS))
def test_a_swap_writes_what_the_loader_of_sglang_reads_from_a_quantised_checkpoint(asked, model, sizes):
    spec, ranks = asked[model, sizes]
    tp, ep = (*map(int, sizes.split(":")), 1)[:2]
    layout = SGLangLayout(spec, tp=tp, ep=ep, fp8=True)
    live = [{name: torch.zeros_like(t) for name, t in rank["parameters"].items()} for rank in ranks]
    export = layout, [{name: shm.export(t) for name, t in tensors.items()} for tensors in live]
    source = MegatronLayout(spec, tp=2, pp=3, transformer_engine=True)
    hf = checkpoint(spec)
    for rank in range(source.world_size):
        SwapWriter(source, rank, [export]).write(shard_of(source, hf, rank))
    for mine, rank in zip(live, ranks):
        theirs = rank["parameters"]
        if model == "llama":  # its loader reads no scales, and the random weights before it have 1
            assert {float(t.unique()) for name, t in theirs.items() if name.endswith("_scale_inv")} == {1.0}
            theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("_scale_inv")}
        assert [name for name in theirs if not same_bits(mine[name], theirs[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), cases(MODELS))
def test_the_probe_reads_weights_and_scales_and_leaves_no_trace(asked, model, sizes):
    _, ranks = asked[model, sizes]
    assert [rank["true"] for rank in ranks] == [""] * len(ranks)
    assert [rank["not_restored"] for rank in ranks] == [[]] * len(ranks)
    if model in ("llama", "qwen2", "qwen3-tied"):
        assert all("gate_up_proj" in rank["false"] for rank in ranks)


@pytest.mark.slow
def test_random_weights_leave_the_scales_of_a_cache_at_one(asked):
    assert {scale for _, ranks in asked.values() for rank in ranks for scale in rank["cache"]} == {1.0}
