"""The least memory of a run: every model that it holds, once for each rank that has it."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.schema import Config
from hybridrl.estimate.gpus import only_memory
from hybridrl.estimate.memory import least, on_cpu
from hybridrl.estimate.setting import Setting
from hybridrl.models import spec as models
from hybridrl.models.published import read_published

QWEN = "Qwen/Qwen2.5-7B"
SPEC = read_published(QWEN)
assert SPEC is not None
WEIGHTS = models.count(SPEC)


def setting(*, on_gpu: bool, **sections: Any) -> Setting:
    config = Config.model_validate(
        {"model": QWEN, "data": {"train": "t.jsonl"}, "reward": "exact_match", "run": {"name": "first"}}
        | ({"cluster": {"gpus_per_node": 8}} if on_gpu else {})
        | sections
    )
    assert SPEC is not None
    return Setting.of(config, SPEC, only_memory("some GPU", 80 * 10**9) if on_gpu else None)


@pytest.mark.parametrize(
    ("sections", "training", "engines"),
    [
        ({}, 4 + 4 + 8, 4),
        ({"actor": {"parallel": {"dp": 2}}, "rollout": {"num_engines": 2}}, 2 * (4 + 4) + 8, 8),
        ({"actor": {"parallel": {"pp": 2}}}, 4 + 4 + 8, 4),
        ({"actor": {"precision": "bf16"}}, 2 + 4 + 8 + 4, 4),
        ({"actor": {"precision": "fp16"}}, 2 + 4 + 8 + 4, 4),
        ({"algorithm": {"kl": {"coefficient": 0.1}}}, 4 + 4 + 8 + 4, 4),
        ({"algorithm": {"loss": "copg"}}, 4 + 4 + 8 + 4, 4),
        ({"algorithm": {"estimator": "prime"}}, 2 * (4 + 4 + 8) + 4, 4),
        (
            {"algorithm": {"loss": "copg"}, "reference": {"parallel": {"dp": 3, "pp": 2}}},
            4 + 4 + 8 + 3 * 4,
            4,
        ),
    ],
)
def test_a_machine_without_gpus_has_all_ranks(sections: dict, training: float, engines: float) -> None:
    found = least(setting(on_gpu=False, **sections))
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(training * WEIGHTS, rel=1e-3)
    assert (found.engine, found.kv, found.activations) == (engines * WEIGHTS, 0, 0)


def test_a_critic_has_another_head() -> None:
    with_it, without = (least(setting(on_gpu=False, algorithm={"estimator": e})) for e in ("gae", "grpo"))
    assert SPEC is not None
    critic = models.count(models.without_vocabulary(SPEC, head="value"))
    assert with_it.peak - without.peak == pytest.approx((4 + 4 + 8) * critic)


def test_adapters_need_no_weights_for_their_reference() -> None:
    lora = {"actor": {"lora": {"rank": 8}}}
    with_it, without = (
        least(setting(on_gpu=False, algorithm={"kl": {"coefficient": c}}, **lora)) for c in (0.1, 0.0)
    )
    assert with_it == without
    assert 4 * WEIGHTS < without.weights < 4.1 * WEIGHTS


@pytest.mark.parametrize(
    ("sections", "training", "engines"),
    [
        ({"actor": {"parallel": {"dp": 1}}}, 2 + 4 + 8 + 4, 2),
        (
            {"actor": {"parallel": {"tp": 2, "dp": 2}}, "rollout": {"parallel": {"tp": 4}}},
            (2 + 4 + (8 + 4) / 2) / 2,
            2 / 4,
        ),
    ],
)
def test_a_gpu_has_its_ranks_and_the_weights_of_its_engine(
    sections: dict, training: float, engines: float
) -> None:
    found = least(setting(on_gpu=True, **sections))
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(training * WEIGHTS, rel=1e-3)
    assert found.engine == pytest.approx(engines * WEIGHTS, rel=1e-3)


def test_a_cache_of_known_size_counts() -> None:
    without = least(setting(on_gpu=False))
    with_cache = least(setting(on_gpu=False, rollout={"kv_cache_tokens": 1000}))
    assert SPEC is not None
    keys_and_values = 2 * SPEC.num_layers * SPEC.num_kv_heads * SPEC.head_dim * 4
    assert with_cache.peak - without.peak == 1000 * keys_and_values


def test_a_plan_counts_activations_on_top() -> None:
    one = setting(on_gpu=False)
    assert on_cpu(one).peak > least(one).peak + on_cpu(one).activations


@pytest.mark.parametrize(
    ("reward_model", "on_gpu", "weights_of_it"),
    [({}, False, 4), ({"parallel": {"dp": 3}}, False, 12), ({}, True, 2)],
)
def test_a_reward_model_counts(tmp_path: Path, reward_model: dict, on_gpu: bool, weights_of_it: int) -> None:
    config = {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "reward"},
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    judge = models.count(models.read(tmp_path))
    sections = {"actor": {"parallel": {"dp": 1}}}
    without = least(setting(on_gpu=on_gpu, **sections))
    with_it = least(setting(on_gpu=on_gpu, reward_model={"path": str(tmp_path), **reward_model}, **sections))
    assert with_it.weights - without.weights == pytest.approx(judge * weights_of_it)
