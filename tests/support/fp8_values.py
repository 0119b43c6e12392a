"""Models whose sizes divide into FP8 blocks, and what an engine in block FP8 holds of them."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import torch
from model_values import hf_tensors, tiny
from shard_oracle import sglang_shard

from hybridrl.layout.sglang import SGLangLayout

_SIZES = {"hidden_size": 256, "num_layers": 2, "vocab_size": 96}
_HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128}
_LATENT = {
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 192,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "rope_head_dim": 64,
    "nope_head_dim": 128,
    "v_head_dim": 128,
}

DENSE = tiny("qwen3", **_SIZES, **_HEADS, ffn_size=512)
EXPERTS = tiny("qwen3_moe", **_SIZES, **_HEADS, ffn_size=512, expert_ffn_size=256)
LATENT_EXPERTS = tiny(
    "deepseek_v3",
    **_SIZES,
    **_LATENT,
    ffn_size=512,
    expert_ffn_size=256,
    shared_ffn_size=256,
    first_moe_layer=1,
)
"""Its fused projection ends within a block, as DeepSeek-V3's does."""

HALF_HEADS = tiny("qwen3", **_SIZES, num_heads=8, num_kv_heads=4, head_dim=64, ffn_size=512)
"""Two heads make up a block, and they are not neighbours in Megatron's order."""


@cache
def engine_quantiser(power_of_two=False):
    """SGLang's `per_block_cast_to_fp8`, out of its source: importing the module would take ten seconds.

    With float32 scales SGLang has it in sglang/benchmark only, as DeepGEMM's; engines read such checkpoints.
    """
    file = "srt/layers/quantization/fp8_utils.py" if power_of_two else "benchmark/deepseek_utils.py"
    package = importlib.util.find_spec("sglang")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / file
    wanted = {"per_block_cast_to_fp8", "ceil_to_ue8m0"}
    found = [n for n in ast.parse(path.read_text()).body if getattr(n, "name", "") in wanted]
    names = {
        "torch": torch,
        "Tuple": tuple,
        "ceil_align": lambda x, y: -(-x // y) * y,
        "cdiv": lambda x, y: -(-x // y),
    }
    exec(compile(ast.Module(found, []), str(path), "exec"), names)
    return names["per_block_cast_to_fp8"]


def checkpoint(spec, seed=0):
    """Tensors in which every block has another largest value; bf16 numbers, as a trainer on GPUs holds."""
    found = {}
    for name, tensor in hf_tensors(spec, seed).items():
        matrix = tensor.reshape(-1, tensor.shape[-1])
        row, col = (torch.arange(n) // 128 for n in matrix.shape)
        sized = matrix * ((row[:, None] * 3 + col * 5) % 7 - 3.0).exp2()
        found[name] = sized.view(tensor.shape).bfloat16().float()
    return found


def quantised(name, spec, layout):
    held = next(h for h in layout.holdings if _is_of(h.tensor, name))
    return held.fp8


def _is_of(pattern, name):
    before, _, after = pattern.partition("*")
    return name.startswith(before) and name.endswith(after)


def fp8_engine(layout, hf, rank):
    """What a rank of an engine holds: SGLang's shard of the checkpoint, quantised by SGLang's function."""
    sizes = {"tp": layout.tp, "ep": layout.ep}
    found = {}
    for name, tensor in sglang_shard(layout.spec, hf, rank=rank, **sizes).items():
        if not quantised(name, layout.spec, layout):
            found[name] = tensor.bfloat16()
            continue
        parts = [engine_quantiser()(part) for part in tensor.view(-1, *tensor.shape[-2:])]
        values, scales = (torch.stack(every) for every in zip(*parts))
        found[name] = values.view(tensor.shape)
        found[name + "_scale_inv"] = scales.view(*tensor.shape[:-2], *scales.shape[1:])
    return found


def empty_engine(layout, rank):
    """The parameters of an engine before its first swap."""
    hf = checkpoint(layout.spec)
    return {name: torch.zeros_like(tensor) for name, tensor in fp8_engine(layout, hf, rank).items()}


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def fp8_layout(spec, **sizes):
    return SGLangLayout(spec, fp8=True, **sizes)
