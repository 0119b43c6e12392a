"""Models by their name on the hub: their sizes against the weights that their files hold."""

import subprocess
import sys

import pytest

from hybridrl.models.published import published_names, read_published
from hybridrl.models.spec import count

NUM_WEIGHTS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen/Qwen3-VL-8B": 8_767_123_696,
    "Qwen/Qwen3-VL-30B-A3B": 31_070_754_032,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,
    "deepseek-ai/DeepSeek-R1": 671_026_419_200,
    "moonshotai/Kimi-K2": 1_026_408_232_448,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "mistralai/Mixtral-8x7B": 46_702_792_704,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b": 999_885_952,
    "google/gemma-3-27b": 27.0e9,
}
"""Weights in the checkpoints; Gemma 3 without vision, DeepSeek-V3 without multi-token prediction."""

CARD = {
    "Qwen/Qwen2.5-72B": 72.7,
    "Qwen/Qwen3-30B-A3B": 30.5,
    "Qwen/Qwen3-235B-A22B": 235,
    "meta-llama/Llama-3.3-70B": 70.6,
    "deepseek-ai/DeepSeek-V3": 671,
    "moonshotai/Kimi-K2": 1026,
    "mistralai/Mixtral-8x7B": 46.7,
    "google/gemma-2-27b": 27.2,
}
"""Billions of weights, from the model cards."""


def weights(name: str) -> float:
    """Weights of the entry with the longest matching prefix: variants of a model have its sizes."""
    return NUM_WEIGHTS[max((short for short in NUM_WEIGHTS if name.startswith(short)), key=len)]


@pytest.mark.parametrize("name", published_names())
def test_published_models_have_as_many_weights_as_their_files(name) -> None:
    spec = read_published(name)
    assert spec is not None
    assert count(spec) == pytest.approx(weights(name), rel=1e-3)


@pytest.mark.parametrize("name", CARD)
def test_the_cards_say_the_same(name) -> None:
    assert weights(name) / 1e9 == pytest.approx(CARD[name], rel=0.01)


@pytest.mark.parametrize("name", published_names())
def test_published_models_can_be_cut(name) -> None:
    spec = read_published(name)
    assert spec is not None
    assert spec.heads_divide(2) and spec.dtype == "bfloat16" and spec.max_positions >= 8192


def test_a_base_model_and_its_instruct_differ_where_their_files_do() -> None:
    base, instruct = (read_published(f"Qwen/Qwen2.5-72B{end}") for end in ("", "-Instruct"))
    assert base and instruct
    assert (base.norm_eps, instruct.norm_eps) == (1e-5, 1e-6)
    assert (base.max_positions, instruct.max_positions) == (131072, 32768)


def test_an_unknown_name_has_no_spec() -> None:
    assert read_published("nobody/nothing") is None


def test_looking_up_a_name_imports_no_torch() -> None:
    code = (
        "import sys; from hybridrl.models.published import read_published; "
        "read_published('Qwen/Qwen2.5-7B'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
