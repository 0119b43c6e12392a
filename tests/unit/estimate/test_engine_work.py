"""What an engine keeps for its own computation: vLLM of its share of a GPU, each on a CPU."""

from dataclasses import replace
from typing import Any

import pytest

from hybridrl.estimate import memory
from hybridrl.estimate.engine import engine_weights, engine_work, kv_bytes
from hybridrl.estimate.setting import Setting
from hybridrl.rollout.base import kind_of
from hybridrl.rollout.vllm.sizes import VLLMParallel
from tests.support.plan_values import make_setting

MODEL = "Qwen/Qwen2.5-7B-Instruct"


def with_vllm(**options: Any) -> Setting:
    return replace(make_setting(MODEL), engine_kind=kind_of("vllm"), engine=VLLMParallel(), **options)


def test_the_cache_is_what_weights_and_computation_leave() -> None:
    found, usual = with_vllm(), make_setting(MODEL)
    work = engine_work(found)
    assert engine_work(usual) == 0
    assert kv_bytes(found) == pytest.approx(kv_bytes(usual) - work)
    assert found.gpu is not None
    phase = memory.rollout(found, 0)
    taken = phase.engine + phase.kv + phase.activations
    assert taken == pytest.approx(found.memory_fraction * found.gpu.memory_bytes)


def test_the_computation_is_a_step_of_many_tokens_or_the_samples_of_many_requests() -> None:
    """Gate, up and their product have 18,944 columns each; a request has 152,064 logits at 42 bytes."""
    few = engine_work(with_vllm(running_requests=16))
    assert few == pytest.approx(8192 * 2 * (3 * 3584 + 3 * 18944))
    assert engine_work(with_vllm(running_requests=1024)) == pytest.approx(1024 * 152064 * 42)
    halves = replace(with_vllm(running_requests=16), engine=VLLMParallel(tp=2))
    assert engine_work(halves) < 0.6 * few


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_without_gpus_packed_copies_of_the_weights_are_kept(kind: str) -> None:
    found = replace(make_setting(MODEL), engine_kind=kind_of(kind), gpu=None)
    more = replace(found, num_engines=found.num_engines + 1)
    assert engine_work(found) == engine_weights(found) > 0
    one = found.engine.tp * engine_weights(found)
    assert memory.on_cpu(more).activations - memory.on_cpu(found).activations == pytest.approx(one)
    assert memory.on_cpu(more).engine - memory.on_cpu(found).engine == pytest.approx(one)
