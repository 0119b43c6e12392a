"""How SGLang is started: on a GPU so that weights stay where its loader puts them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from model_values import tiny
from sglang.srt.arg_groups.choices import MOE_RUNNER_BACKEND_CHOICES
from sglang.srt.arg_groups.model_overrides import qwen3_moe
from sglang.srt.environ import envs

from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.sglang import arguments
from hybridrl.rollout.sglang.sizes import SGLangParallel

SETUP = EngineSetup(
    model_folder="",
    log_path="",
    parallel=SGLangParallel(tp=2),
    max_prompt_tokens=16,
    max_response_tokens=16,
    max_running_requests=8,
)
SWITCHES = ["SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED", "SGLANG_MEMORY_SAVER_CUDA_GRAPH"]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "has_cuda", lambda: True)
    monkeypatch.setattr(arguments, "read", lambda folder: tiny("qwen3_moe"))
    monkeypatch.setattr(arguments, "_is_blackwell", lambda: True)


@pytest.mark.usefixtures("on_gpu")
def test_blackwell_computes_experts_from_weights_as_they_were_loaded(monkeypatch) -> None:
    """SGLang's choice there, where it is left the choice, repacks them."""
    monkeypatch.setattr(qwen3_moe, "get_platform", lambda: SimpleNamespace(is_sm100=True))
    monkeypatch.setattr(qwen3_moe, "get_quantization_config", lambda config: None)
    monkeypatch.setattr(qwen3_moe, "resolving_view", lambda args: args)

    def override(**options) -> dict:
        left_open = {"moe_runner_backend": "auto", "moe_a2a_backend": "none", "quantization": None}
        args = SimpleNamespace(_quantization_explicitly_unset=False, **(left_open | options))
        model = SimpleNamespace(architectures=["Qwen3MoeForCausalLM"])
        return qwen3_moe._qwen3_moe_family_overrides(args, model)

    chosen = arguments.engine_arguments(SETUP)
    assert override()["moe_runner_backend"] == "flashinfer_trtllm"
    assert override(moe_runner_backend=chosen["moe_runner_backend"]) == {}
    assert chosen["moe_runner_backend"] in MOE_RUNNER_BACKEND_CHOICES


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.usefixtures("on_gpu")
def test_an_inherited_switch_does_not_reorder_experts_or_give_graphs_away(
    switch, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv(switch, "1")
    assert getattr(envs, switch).get()
    inherited = arguments.environment(2, 1, str(tmp_path))
    monkeypatch.setenv(switch, inherited[switch])
    assert not getattr(envs, switch).get()


def test_a_cpu_engine_has_no_kernels_to_choose() -> None:
    assert "moe_runner_backend" not in arguments.engine_arguments(SETUP)


@pytest.mark.usefixtures("on_gpu")
def test_fp8_is_the_form_of_a_quantised_checkpoint_without_its_values() -> None:
    """What SGLang makes of it is tested on its own models, in test_sglang_fp8.py."""
    plain = arguments.engine_arguments(SETUP)
    chosen = arguments.engine_arguments(replace(SETUP, fp8_weights=True, version=None))
    quantised = json.loads(chosen.pop("json_model_override_args"))["quantization_config"]
    assert (quantised["quant_method"], quantised["weight_block_size"]) == ("fp8", [128, 128])
    assert chosen.pop("load_format") == "dummy"
    assert chosen == plain
    cached = arguments.engine_arguments(replace(SETUP, fp8_cache=True))
    assert cached.pop("kv_cache_dtype") == "fp8_e4m3"
    assert cached == plain


@pytest.mark.usefixtures("on_gpu")
def test_an_inherited_switch_does_not_repack_fp8_or_leave_layers_out(tmp_path) -> None:
    inherited = arguments.environment(1, 1, str(tmp_path))
    assert inherited["SGLANG_FORCE_FP8_MARLIN"] == "0"
    assert inherited["SGLANG_FP8_IGNORED_LAYERS"] == ""
