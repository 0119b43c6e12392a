"""The layers of a GPU, on a CPU: torch stands in for Transformer Engine's modules, the rest is what runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import te_standins
import torch
import trainer_models as models
import trainer_values as values
from safetensors.torch import load_file
from torch.testing import assert_close
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel
from hybridrl.errors import ResourceError
from hybridrl.hosts import cuda
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import read
from hybridrl.trainer.megatron import cuda_layers
from hybridrl.trainer.megatron.architecture import transformer_config
from hybridrl.trainer.megatron.attention import PackedAttention

RELATIVE = 2e-6  # what DESIGN.md promises of loss and gradients in fp32
SLOW = pytest.mark.slow
SHAPES = {  # how the ranks share the work, and what is trained
    "one_rank": (
        TrainParallel(dp=1),
        ("qwen3_yarn", "qwen3_moe_mixed", "deepseek_v2", "deepseek_v2_lite", "gemma2", "gemma3"),
    ),
    "tp2": (TrainParallel(dp=1, tp=2), ("qwen3_yarn", "latent_dense", "qwen3_moe", "gemma3")),
    "tp2_shared_sequence": (TrainParallel(dp=1, tp=2, sp=True), ("qwen3_yarn", "latent_dense", "gemma3")),
    "ep2": (TrainParallel(dp=2, ep=2), ("qwen3_moe", "deepseek_v3")),
    "cp2": (TrainParallel(dp=1, cp=2), ("qwen3_yarn", "deepseek_v3")),
    "tp2_experts_cut": (TrainParallel(dp=1, tp=2, etp=2), ("qwen3_moe", "deepseek_v2")),
    "tp2_experts_dealt_pp2": (TrainParallel(dp=1, tp=2, ep=2, pp=2), ("qwen3_moe", "deepseek_v3")),
}
FAST = ("one_rank", "tp2_shared_sequence")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: models.make_model(folder, kind) for kind in models.KINDS}


@pytest.fixture(
    scope="module", params=[name if name in FAST else pytest.param(name, marks=SLOW) for name in SHAPES]
)
def runs(request, folders, tmp_path_factory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By kind of model, what the first rank found and what transformers finds."""
    shape, kinds = SHAPES[request.param]
    out, plain = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("plain")
    asked = [folders[kind] for kind in kinds]
    ranks = on_ranks(shape.num_ranks, te_standins.learn, asked, shape, (6,), out)
    return {
        kind: (found, models.learn_plainly(folders[kind], plain))
        for kind, found in zip(kinds, ranks[0], strict=True)
    }


def test_layout_and_modules_agree_on_every_weight(runs, folders) -> None:
    """Imported and exported by the layout's names: what one side lacks or cuts otherwise would differ."""
    for kind, (found, _) in runs.items():
        source = load_file(folders[kind] / "model.safetensors")
        exported = load_file(found["out"] / "imported" / kind / "model.safetensors")
        assert source.keys() == exported.keys()
        assert all(exported[name].equal(tensor) for name, tensor in source.items())


def test_logprobs_equal_transformers(runs) -> None:
    mask_T = values.make_block().loss_mask_T
    for found, plain in runs.values():
        np.testing.assert_allclose(found["logp_T"][mask_T], plain["logp"], atol=5e-6, rtol=0)


def test_losses_and_gradient_norms_equal_plain_torch(runs) -> None:
    for kind, (found, plain) in runs.items():
        for report, (loss, grad_norm) in zip(found["reports"], plain["steps"], strict=True):
            assert report["loss"] == pytest.approx(loss, rel=RELATIVE), kind
            assert report["grad_norm"] == pytest.approx(grad_norm, rel=RELATIVE), kind


def test_weights_after_the_steps_equal_adamw(runs) -> None:
    """Each step moves a weight by at most lr = 1e-3; eps = 1e-4 keeps Adam from blowing up rounding."""
    for kind, (found, plain) in runs.items():
        expected = load_file(plain["weights"] / "model.safetensors")
        trained = load_file(found["out"] / "trained" / kind / "model.safetensors")
        for name, weight in trained.items():
            assert_close(
                weight, expected[name], atol=1e-6, rtol=1e-6, msg=lambda said, n=name: f"{n}: {said}"
            )


def config_of(folder: Path, precision: str | None = None, **parallel: int) -> Any:
    """Megatron's description of a model on a GPU."""
    shape = TrainParallel(dp=1, **parallel)
    setup = values.make_setup(0, "", folder, shape, actor=values.make_actor(precision=precision), device=0)
    return transformer_config(setup, torch.device("cuda", 0))


def attention_of(folder: Path, window: int | None = None, **options: Any) -> Any:
    return cuda_layers.core_attention(config_of(folder, **options), read(folder), window)


@pytest.mark.usefixtures("rope_kernel")
@pytest.mark.filterwarnings("ignore:Transformer Engine's")
def test_transformer_engine_attends_unless_it_cannot(folders) -> None:
    engines = [attention_of(folders["qwen3_moe"], window) for window in (None, 4)]
    assert [spec.module for spec in engines] == [cuda_layers.VarlenAttention] * 2
    assert attention_of(folders["qwen3_moe"], cp=2).module is cuda_layers.VarlenAttention
    ours = [
        attention_of(folders["gemma2"]),  # a soft cap
        attention_of(folders["qwen3_moe"], 4, cp=2),
        attention_of(folders["deepseek_v3"], cp=2),
        attention_of(folders["mixtral"]),  # heads of 12
        attention_of(folders["qwen3_moe"], precision="fp32"),
    ]
    assert [spec.module for spec in ours] == [PackedAttention] * len(ours)


@pytest.mark.usefixtures("rope_kernel")
def test_a_slower_attention_is_said(folders) -> None:
    with pytest.warns(UserWarning, match="soft cap"):
        attention_of(folders["gemma2"])


@pytest.mark.usefixtures("rope_kernel")
def test_a_gpu_computes_in_bf16_with_fused_kernels(folders) -> None:
    config = config_of(folders["qwen3_moe"])
    assert config.bf16 and config.params_dtype == torch.bfloat16
    assert config.apply_rope_fusion and config.bias_activation_fusion and config.moe_grouped_gemm
    assert not config.use_cpu_initialization and not config.deterministic_mode
    assert not config_of(folders["gemma3"]).bias_activation_fusion  # its gate has another activation
    assert not config_of(folders["deepseek_v3"]).apply_rope_fusion


def test_a_gpus_layout_is_padded_and_holds_transformer_engines_names(folders) -> None:
    spec = read(folders["qwen3_moe"])
    on_cpu, on_gpu = (MegatronLayout.of(spec, on_gpu=on_gpu, tp=2) for on_gpu in (False, True))
    assert (on_cpu.padded_vocab, on_gpu.padded_vocab) == (38, 256)
    names = {holding.tensor for holding in on_gpu.holdings}
    assert any(name.endswith("linear_qkv.layer_norm_weight") for name in names)
    assert not names & {
        holding.tensor for holding in on_cpu.holdings if ".input_layernorm." in holding.tensor
    }


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ResourceError, match="CUDA device 99"):
        cuda.take(99)


def test_a_variable_that_says_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cuda.DETERMINISTIC.items():
        monkeypatch.setenv(name, value)
    cuda.make_deterministic()
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    with pytest.raises(ResourceError, match="run.deterministic needs NVTE_ALLOW_NONDETERMINISTIC_ALGO=0"):
        cuda.make_deterministic()


def test_the_device_says_the_host(folders) -> None:
    setup = values.make_setup(0, "", folders["qwen3_moe"], (1, 1, 1))
    assert (setup.host, replace(setup, device=0).host) == ("cpu", "cuda")
