"""What pictures add to an estimate."""

from dataclasses import replace
from pathlib import Path

import pytest
from model_values import tiny

from hybridrl.config.load import load
from hybridrl.estimate import swap
from hybridrl.estimate.fixed import fixed
from hybridrl.estimate.gathered import gathered
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.memory import host_bytes, logprobs, state, training
from hybridrl.estimate.pictures import pixel_bytes, step_pixels, tower_forward, tower_kept, tower_weights
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import swap_s
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.published import read_published
from hybridrl.reshard.plan import Job
from hybridrl.reshard.topology import Topology

CONFIGS = Path(__file__).parents[3] / "configs"
QWEN3, QWEN2_5 = "geo3k_qwen3vl_8b", "grpo_qwen25vl_7b"


def setting(name: str, *overrides: str) -> Setting:
    cfg = load(CONFIGS / f"{name}.yaml", list(overrides)).config
    model = read_published(cfg.model.path)
    assert model is not None
    return Setting.of(cfg, model, GPUS["h100"])


@pytest.mark.parametrize(("name", "millions"), [(QWEN3, 576.4), (QWEN2_5, 676.6)])
def test_the_tower_has_the_parameters_of_the_published_model(name: str, millions: float) -> None:
    assert tower_weights(setting(name).model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_token_is_32_x_32_pixels_of_3_bytes() -> None:
    found = setting(QWEN3)
    assert pixel_bytes(found, 10) == 10 * 32 * 32 * 3
    assert step_pixels(found) == 256 * 768 * 32 * 32 * 3


def test_a_run_on_text_has_none_of_it() -> None:
    text = setting(QWEN3, "data.images=null", "actor.vision={}")
    assert tower_kept(text) == tower_forward(text) == step_pixels(text) == 0
    with_pictures = setting(QWEN3)
    assert training(with_pictures, 0).activations > training(text, 0).activations
    assert host_bytes(with_pictures) - host_bytes(text) == 256 * 1536 * 32 * 32 * 3


def test_a_tower_without_recomputation_keeps_every_layer_and_a_frozen_one_none() -> None:
    again, kept = setting(QWEN3), setting(QWEN3, "actor.recompute=none")
    frozen = setting(QWEN3, "actor.vision={mode: frozen}", "actor.recompute=none")
    assert tower_kept(kept) > 8 * tower_kept(again)
    assert tower_kept(frozen) == tower_forward(kept) < tower_kept(again)
    assert logprobs(kept, 0).activations >= tower_forward(kept)


def test_ranks_of_fsdp_share_the_tower_and_gather_it_whole() -> None:
    found = setting(QWEN3, "actor.backend=fsdp", "actor.parallel={dp: 8}")
    without = replace(found.model, family="qwen3", vision=None)
    text, tower = replace(found, model=without), tower_weights(found.model)
    assert state(found, 0).policy - state(text, 0).policy == pytest.approx(4 * tower / 8)
    assert gathered(found) - gathered(text) == tower * found.weight_bytes


def test_what_is_not_trained_of_the_tower_is_fixed() -> None:
    modes = {
        mode: fixed(setting(QWEN3, f"actor.vision={{mode: {mode}}}"))
        for mode in ("train", "projector", "frozen")
    }
    text = fixed(setting(QWEN3, "data.images=null", "actor.vision={}"))
    assert modes["train"] == frozenset() and modes["frozen"] == text
    assert "vision.merger.linear_fc1.weight" in modes["frozen"] - modes["projector"]
    assert "vision.deepstack_merger_list.2.norm.bias" in modes["frozen"] - modes["projector"]
    assert "vision.blocks.26.attn.qkv.bias" in modes["projector"] < modes["frozen"]
    assert {name.partition(".")[0] for name in text} == {"vision"}


def test_weights_without_an_adapter_are_fixed() -> None:
    found = fixed(setting(QWEN3, "data.images=null", "actor.vision={}", "actor.lora={targets: [qkv]}"))
    assert "layers.3.qkv" not in found and {"layers.3.down", "embed", "vision.pos_embed.weight"} <= found


def test_a_plan_says_what_the_first_swap_alone_writes() -> None:
    spec = tiny("qwen3", num_layers=2)
    job = Job(MegatronLayout(spec), (SGLangLayout(spec, tp=2),), Topology.colocated(1, [2], 8))
    all_, but_norm = (
        swap.estimate(job, 4),
        swap.estimate(job, 4, frozenset({"final_norm", "layers.1.ffn_norm"})),
    )
    assert but_norm.fixed_bytes == 2 * 2 * 4 * spec.hidden_size and all_.fixed_bytes == 0
    assert all_.written_bytes == but_norm.written_bytes
    told = [text for _, text in swap.lines(but_norm) if "by the first swap only" in text]
    assert len(told) == 1 and not any("first swap only" in text for _, text in swap.lines(all_))
    assert swap_s(but_norm, GPUS["h100"]) < swap_s(all_, GPUS["h100"])
