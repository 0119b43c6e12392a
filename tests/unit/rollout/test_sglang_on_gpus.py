"""SGLang itself resolves our arguments, on GPUs that are not there, to what the weight update relies on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sglang_resolved
import trainer_models as models
import trainer_values as values

from hybridrl.rollout.sglang.arguments import PAGE_TOKENS

KINDS = ("qwen3", "qwen3_moe", "deepseek_v3", "gemma2", "gemma3")
NO_SOFT_CAP = {"trtllm_mha", "trtllm_mla"}
"""SGLang's attention backends whose code knows no soft cap."""

Resolved = dict[str, tuple[dict[str, Any], dict[str, Any]]]
"""By kind of model: without and with EngineSetup.deterministic."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [(models.make_model if k in models.KINDS else values.make_model)(folder, k) for k in KINDS]


@pytest.fixture(scope="module", params=sglang_resolved.GPUS)
def resolved(request, folders: list[Path]) -> Resolved:
    support = Path(sglang_resolved.__file__)
    done = subprocess.run(
        [sys.executable, support, request.param, *folders],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(support.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_weights_stay_as_they_were_loaded(resolved: Resolved) -> None:
    for case in (each for both in resolved.values() for each in both):
        assert case["moe_runner_backend"] == "triton"  # others repack experts
        assert case["quantization"] is None and case["dtype"] == "bfloat16"
        assert case["disable_shared_experts_fusion"]
        assert not case["enable_weights_cpu_backup"]


def test_the_cache_is_as_large_as_configured_and_can_be_given_back(resolved: Resolved) -> None:
    for case in (each for both in resolved.values() for each in both):
        assert case["page_size"] <= PAGE_TOKENS
        assert case["max_total_tokens"] // case["page_size"] * case["page_size"] >= 1000 + PAGE_TOKENS
        assert case["mem_fraction_static"] == 0.5  # nothing that SGLang sees on the device changes it
        assert case["enable_memory_saver"]


def test_graphs_are_captured_for_decoding_only(resolved: Resolved) -> None:
    for case in (each for both in resolved.values() for each in both):
        graphs = case["cuda_graph_config"]
        assert (graphs["prefill"]["backend"], graphs["decode"]["backend"]) == ("disabled", "full")
        assert graphs["decode"]["max_bs"] == 256  # rollout.max_running_requests


def test_a_soft_cap_is_computed(resolved: Resolved) -> None:
    for case in resolved["gemma2"]:
        assert case["attention_backend"] not in NO_SOFT_CAP


def test_a_deterministic_engine_samples_by_seeds(resolved: Resolved) -> None:
    for free, fixed in resolved.values():
        assert not free["enable_deterministic_inference"] and fixed["enable_deterministic_inference"]
        assert fixed["sampling_backend"] == "pytorch"  # the one that knows the seeds of requests
        assert fixed["attention_backend"] in {"fa3", "triton"}  # batches do not change their results
        assert not fixed["disable_radix_cache"]
