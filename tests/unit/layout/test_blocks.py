"""Block FP8 in layouts: what is quantised, and which sizes divide into blocks."""

import pytest
from fp8_values import DENSE, EXPERTS, HALF_HEADS, LATENT_EXPERTS, fp8_layout
from model_values import WITH_TOWER, tiny

from hybridrl.errors import LayoutError
from hybridrl.layout.blocks import is_quantised
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.vllm import VLLMLayout
from hybridrl.models.published import read_published
from hybridrl.models.spec import parameters
from hybridrl.reshard.divided import refuse_divided_blocks
from hybridrl.reshard.plan import Job, plan

LINEARS = {"qkv", "attention_out", "gate_up", "down"}


def quantised(spec):
    return {p.name.removeprefix("layers.*.") for p in parameters(spec) if is_quantised(p)}


def test_linear_layers_and_experts_are_quantised_and_nothing_else() -> None:
    assert quantised(DENSE) == LINEARS
    assert quantised(EXPERTS) == {"qkv", "attention_out", "experts.gate_up", "experts.down"}
    assert quantised(LATENT_EXPERTS) == {
        *("mla_down", "mla_q_up", "mla_kv_up", "mla_out", "gate_up", "down"),
        *("experts.gate_up", "experts.down", "shared_experts.gate_up", "shared_experts.down"),
    }
    for family in WITH_TOWER:
        assert not any(name.startswith("vision") for name in quantised(tiny(family)))


def published(name):
    spec = read_published(name)
    assert spec is not None
    return spec


@pytest.mark.parametrize(
    ("model", "sizes", "said"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", {"tp": 4}, ""),
        (
            "Qwen/Qwen2.5-72B-Instruct",
            {"tp": 8},
            "layers.*.gate_up has a part of 3696 rows on each of 8",
        ),
        ("Qwen/Qwen3-30B-A3B", {"tp": 8, "ep": 8}, ""),
        (
            "Qwen/Qwen3-30B-A3B",
            {"tp": 4},
            "layers.*.experts.gate_up has a part of 192 rows on each of",
        ),
        ("deepseek-ai/DeepSeek-V3", {"tp": 16, "ep": 16, "dp_attention": 4}, ""),
        (
            "deepseek-ai/DeepSeek-V3",
            {"tp": 64, "ep": 64, "dp_attention": 16},
            "layers.*.gate_up has a part of 288 rows on each of 64 ranks, which are not whole blocks of 128: "
            "rollout.parallel.tp: 1 or 2 or 4 or 8 or 16, or rollout.precision: bf16",
        ),
    ],
)
def test_sizes_that_sglang_refuses_are_refused_with_those_that_work(model, sizes, said) -> None:
    if not said:
        assert SGLangLayout(published(model), **sizes).in_fp8().fp8
        return
    with pytest.raises(LayoutError) as error:
        SGLangLayout(published(model), **sizes).in_fp8()
    assert said in str(error.value)


def test_columns_have_to_be_whole_blocks_on_one_rank_too() -> None:
    odd = tiny("qwen3", hidden_size=192, num_heads=2, num_kv_heads=2, head_dim=128, ffn_size=256)
    with pytest.raises(LayoutError, match="layers.*qkv has 192 columns, which are not whole blocks"):
        fp8_layout(odd)


def test_vllm_and_loaders_have_no_layout_in_fp8() -> None:
    with pytest.raises(LayoutError, match="VLLMLayout has no block-FP8 weights"):
        VLLMLayout(DENSE).in_fp8()


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        (MegatronLayout(HALF_HEADS, tp=2), False),
        (MegatronLayout(HALF_HEADS, tp=4), True),
        (MegatronLayout(DENSE, tp=2, pp=2), False),
        (MegatronLayout(LATENT_EXPERTS, tp=2), True),  # Megatron's own modules cut the down-projections
        (MegatronLayout(LATENT_EXPERTS, tp=2, transformer_engine=True), False),
        (FSDPLayout(DENSE, dp=2), False),
        (FSDPLayout(DENSE, dp=3), True),
    ],
    ids=["a block a rank", "half a block", "dense", "cut", "whole", "shards of blocks", "cut shards"],
)
def test_trainers_that_divide_blocks_are_refused_before_and_by_the_plan(source, refused) -> None:
    target = fp8_layout(source.spec, tp=2)
    for check in (refuse_divided_blocks, lambda source, target: plan(Job(source, (target,)))):
        if refused:
            with pytest.raises(LayoutError, match="trainer ranks divide .* within a block of 128 x 128"):
                check(source, target)
        else:
            check(source, target)
