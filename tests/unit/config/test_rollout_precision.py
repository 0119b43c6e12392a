"""rollout.precision and kv_cache_precision: where they are refused, and the warning about their mismatch."""

from pathlib import Path

import pytest

from hybridrl.algorithms.lag import mismatch_warning
from hybridrl.config.load import load
from hybridrl.config.rules import RuleContext
from hybridrl.config.rules.rollout_precision import rollout_precision_fits_the_run

H100S = "cluster={gpus_per_node: 8, gpu: h100}"


@pytest.fixture
def config(tmp_path: Path):
    file = tmp_path / "my.yaml"
    file.write_text("model: Qwen/Qwen2.5-7B\ndata: {train: x.jsonl}\nreward: exact\nrun: {name: first}\n")
    return lambda *overrides: load(file, overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["rollout.precision=fp8", "cluster.gpus_per_node=0"],
            "rollout.precision = fp8 needs GPUs, cluster.gpus_per_node = 0: SGLang multiplies FP8 on a CPU "
            "with kernels for Intel AMX only",
        ),
        (["rollout.precision=fp8"], "rollout.precision = fp8 needs GPUs, this machine has none"),
        (
            ["rollout.precision=bf16"],
            "rollout.precision = bf16 needs GPUs, this machine has none: engines",
        ),
        (["rollout.kv_cache_precision=fp8"], "SGLang's attention on a CPU is torch's, which has no FP8"),
        (
            ["rollout.precision=fp8", "cluster={gpus_per_node: 8, gpu: a100}"],
            "rollout.precision = fp8 needs h100 or h200, cluster.gpu = a100: SGLang repacks block-FP8",
        ),
        (
            ["rollout.precision=fp8", "cluster={gpus_per_node: 8, gpu: b200}"],
            "cluster.gpu = b200: SGLang rewrites the scales of block-FP8 weights there",
        ),
        (
            ["rollout.kv_cache_precision=fp8", "cluster={gpus_per_node: 8, gpu: a100}"],
            "rollout.kv_cache_precision = fp8 needs h100 or h200 or b200, cluster.gpu = a100",
        ),
        (
            ["rollout.precision=fp8", "rollout.weight_path=engine_api", H100S],
            "the weight swap quantises, the engine's own loader does not",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(config, overrides, said) -> None:
    (error,) = rollout_precision_fits_the_run(config(*overrides), RuleContext(num_gpus=0, spec=None))
    assert said in str(error)


@pytest.mark.parametrize("keys", [["precision"], ["kv_cache_precision"], ["precision", "kv_cache_precision"]])
def test_hopper_takes_fp8(config, keys) -> None:
    found = config(*(f"rollout.{key}=fp8" for key in keys), H100S)
    assert list(rollout_precision_fits_the_run(found, RuleContext(num_gpus=0, spec=None))) == []
    on_this = config(*(f"rollout.{key}=fp8" for key in keys))
    assert list(rollout_precision_fits_the_run(on_this, RuleContext(num_gpus=8, gpu="h200", spec=None))) == []


def test_a_loss_that_does_not_compare_the_policies_is_given_a_correction(config) -> None:
    told = mismatch_warning(config("rollout.precision=fp8", "rollout.kv_cache_precision=fp8").config)
    assert told is not None
    assert told.startswith("rollout.precision = fp8 and rollout.kv_cache_precision = fp8: engines sample")
    assert "algorithm.correction=[token_is]" in told
    assert mismatch_warning(config("rollout.precision=fp8", "algorithm.correction=[token_is]").config) is None
    assert mismatch_warning(config("rollout.precision=bf16").config) is None
