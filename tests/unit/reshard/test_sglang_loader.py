"""Our plans put into an SGLang rank what SGLang's own loader puts there: every name, element and pad."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from shard_oracle import hf_tensors

from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import read
from hybridrl.reshard.checkpoint import load_hf

SIZES = {
    "vocab_size": 151,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**SIZES)),
    "llama-bias-tied": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True),
    ),
    "qwen2": ("Qwen2ForCausalLM", transformers.Qwen2Config(**SIZES)),
    "qwen3-tied": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    ),
    "qwen3-bias": ("Qwen3ForCausalLM", transformers.Qwen3Config(**SIZES, head_dim=16, attention_bias=True)),
}
TP = [1, 2, 4, 8]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(folder, tp) -> parameters of every rank, by SGLang."""
    root = tmp_path_factory.mktemp("models")
    for name, (architecture, config) in MODELS.items():
        config.architectures = [architecture]
        config.save_pretrained(root / name)
        save_file(hf_tensors(read(root / name)), root / name / "model.safetensors")
    program = Path(__file__).parents[2] / "support" / "sglang_loader.py"
    folders = [str(root / name) for name in MODELS]
    command = [sys.executable, str(program), str(root / "out.pt"), ",".join(map(str, TP)), *folders]
    subprocess.run(command, check=True, timeout=600)
    found = torch.load(root / "out.pt", weights_only=True)
    return {(Path(folder).name, tp): (Path(folder), ranks) for (folder, tp), ranks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tp", TP)
@pytest.mark.parametrize("model", MODELS)
def test_equals_the_loader_of_sglang(loaded, model, tp):
    folder, ranks = loaded[model, tp]
    layout = SGLangLayout(read(folder), tp=tp)
    for rank, theirs in enumerate(ranks):
        ours = {name: torch.full(shard.shape, 7.0) for name, shard in layout.shards(rank).items()}
        load_hf(folder, layout, rank, ours)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), (rank, name)
