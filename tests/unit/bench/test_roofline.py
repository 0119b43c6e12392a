"""Bounds of the phases, against what a count by hand says of a small model."""

import pytest
from model_values import tiny

from hybridrl.bench.flops import data_sheet, operations
from hybridrl.bench.roofline import Speeds, bounds, read_weights, speeds_here
from hybridrl.hosts.machine import GPU
from hybridrl.models.spec import count

HIDDEN, LAYERS, FFN, HEADS, KV, HEAD, VOCAB = 8, 2, 16, 4, 2, 4, 100
MODEL = tiny(
    "qwen2",
    **{"hidden_size": HIDDEN, "num_layers": LAYERS, "ffn_size": FFN, "num_heads": HEADS},
    **{"num_kv_heads": KV, "head_dim": HEAD, "vocab_size": VOCAB, "tied": True},
)
LAYER_WEIGHTS = LAYERS * (HIDDEN * HEAD * (2 * HEADS + 2 * KV) + 3 * HIDDEN * FFN)
STEP = {"tokens": 60.0, "response_tokens": 5.0, "longest_response": 9.0, "answers": 4.0}
"""Four answers to two prompts of 10 tokens."""

FAST = Speeds(flops=1e30, bytes_s=1.0, weight_bytes=4)
WIDE = Speeds(flops=1.0, bytes_s=1e30, weight_bytes=4)


def bound(here: Speeds, **changes: int) -> dict[str, float]:
    return bounds(MODEL, STEP, here, **{"prompts": 2, "updates": 1, "epochs": 1, **changes})


def test_bytes_are_those_of_weights_once_a_token_and_of_adam() -> None:
    found = bound(FAST)
    assert read_weights(MODEL) == LAYER_WEIGHTS + VOCAB * HIDDEN
    assert found["gen_s"] == pytest.approx(9 * 4 * (LAYER_WEIGHTS + VOCAB * HIDDEN))
    assert found["train_s"] == pytest.approx(7 * 4 * count(MODEL))
    assert found["update_weights_s"] == pytest.approx(2 * 4 * count(MODEL))
    assert bound(FAST, updates=3)["train_s"] == pytest.approx(3 * found["train_s"])


def test_operations_are_those_of_each_token_once() -> None:
    def attended(context: float) -> float:
        return 2 * LAYERS * HEADS * 2 * HEAD * context

    found, token, output = bound(WIDE), 2 * LAYER_WEIGHTS, 2 * VOCAB * HIDDEN
    train = 3 * (60 * (token + attended(7.5)) + 20 * output)
    prefill, decode = 20 * (token + attended(5.0)), 20 * (token + output + attended(7.5))
    assert found["train_s"] == pytest.approx(train)
    assert found["gen_s"] == pytest.approx(prefill + decode)
    assert bound(WIDE, epochs=2)["train_s"] == pytest.approx(2 * train)


def test_operations_of_mfu_are_counted_as_verl_does() -> None:
    weights = LAYER_WEIGHTS + 2 * VOCAB * HIDDEN
    attention = 6 * (10**2 + 20**2) * HEAD * HEADS * LAYERS
    assert operations(MODEL, [10, 20]) == pytest.approx(6 * weights * 30 + attention)


def test_gpus_are_known_by_their_data_sheets_or_not_at_all() -> None:
    h200 = data_sheet(GPU(0, "", "NVIDIA H200", 150 * 10**9, 0))
    assert h200 is not None and h200.flops == 989e12
    assert data_sheet(GPU(0, "", "Tesla T4", 16 * 10**9, 0)) is None


def test_this_machine_has_speeds() -> None:
    found = speeds_here()
    assert found is not None and found.flops > 1e9 and found.bytes_s > 1e8 and found.weight_bytes in (2, 4)
