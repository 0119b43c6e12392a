from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import SHAPES, compare
from hybridrl.estimate import memory
from hybridrl.estimate.activations import in_flight
from hybridrl.estimate.weights import on_engine, on_stage
from hybridrl.layout.base import Layout
from tests.support.plan_values import make_setting

MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3")


def elements(layout: Layout, rank: int) -> int:
    """Of a rank's boxes, one by one."""
    found = 0
    for held in layout.holdings:
        if rank in held.ranks:
            columns = sum(run.length for run in held.cols) if len(held.shape) - bool(held.step) > 1 else 1
            found += sum(run.length for run in held.rows) * columns * len(held.layers) * len(held.experts)
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "axes", [{}, {"tp": 2}, {"pp": 2, "stage_layers": True}, {"tp": 2, "dp": 2, "ep": 4}, {"dp": 4, "ep": 2}]
)
def test_stages_hold_what_the_layout_gives_them(model: str, axes: dict[str, Any]) -> None:
    setting = make_setting(model)
    if "ep" in axes and not setting.model.num_experts:
        axes = axes | {"ep": 1}
    if axes.get("stage_layers"):
        axes = axes | {"stage_layers": (5, setting.model.num_layers - 5)}
    layout = setting.recut(**axes).layout()
    for stage in range(layout.pp):
        expected = elements(layout, layout.world_size // layout.pp * stage)
        assert on_stage(layout, stage).all == pytest.approx(expected, rel=1e-4)  # padding of the vocabulary


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_engines_hold_what_the_layout_gives_them(model: str, tp: int) -> None:
    setting = make_setting(model)
    engine = setting.engine.model_copy(update={"tp": tp})
    layout = replace(setting, engine=engine).engine_layout() if setting.model.heads_divide(tp) else None
    if layout is not None:
        assert on_engine(layout) == pytest.approx(elements(layout, 0), rel=1e-2)  # padding, whole norms


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([8192, 16384, 32768]), st.sampled_from([1, 2]))
def test_less_is_kept_with_more_ranks_fewer_tokens_and_recomputation(tp: int, tokens: int, pp: int) -> None:
    setting = replace(make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8), microbatch_tokens=tokens)
    here = setting.recut(tp=tp, pp=pp)
    kept = memory.activations(here, 0)
    assert memory.activations(replace(here, microbatch_tokens=2 * tokens), 0) > kept
    assert memory.activations(replace(here, recompute="full"), 0) < kept
    assert memory.training(setting.recut(tp=2 * tp, pp=pp), 0).peak < memory.training(here, 0).peak


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40))
def test_earlier_stages_hold_more_microbatches(pp: int, microbatches: int) -> None:
    setting = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8).recut(pp=pp)
    held = [in_flight(setting, stage, microbatches) for stage in range(pp)]
    assert held == sorted(held, reverse=True) and held[-1] == 1 and held[0] == min(pp, microbatches)


def test_an_offload_leaves_only_the_policy() -> None:
    setting = make_setting("Qwen/Qwen2.5-7B-Instruct")
    held = memory.resident(setting, 0)
    kept = {how: held.after_offload(replace(setting, offload=how)) for how in ("none", "optimizer", "all")}
    assert kept["none"] == held
    assert kept["optimizer"].all == held.all - held.optimizer
    assert kept["all"].all == held.policy


def test_a_checkpoint_of_72b_is_a_terabyte() -> None:
    """72.7 B weights of 2 bytes, and 12 bytes of optimizer each."""
    setting = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8)
    assert memory.checkpoint_bytes(setting) == pytest.approx(72.7e9 * 14, rel=1e-3)


@pytest.mark.slow
def test_predicted_peaks_are_within_ten_percent_of_measured_ones() -> None:
    for row in compare([SHAPES[0], SHAPES[11]]):
        assert abs(row["error"]) < 0.1, row
