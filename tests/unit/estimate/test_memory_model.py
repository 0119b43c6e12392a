from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import SHAPES, compare
from hybridrl.config.training import LoraConfig, TrainParallel
from hybridrl.estimate import activations, memory
from hybridrl.estimate.activations import in_flight
from hybridrl.estimate.trainer_layouts import trainer_layout
from hybridrl.estimate.weights import on_engine, on_stage
from hybridrl.layout.base import Layout
from hybridrl.models.spec import count, without_vocabulary
from hybridrl.trainer import linear_logprob
from tests.support.plan_values import make_setting

MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3")


def elements(layout: Layout, rank: int) -> int:
    """Number of elements in a rank's boxes, counted one by one."""
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
    layout = setting.with_sharding(**axes).layout()
    for stage in range(layout.pp):
        expected = elements(layout, layout.world_size // layout.pp * stage)
        assert on_stage(layout, stage).all == pytest.approx(expected, rel=3e-4)  # padding of the vocabulary


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_engines_hold_what_the_layout_gives_them(model: str, tp: int) -> None:
    setting = make_setting(model)
    engine = setting.engine.model_copy(update={"tp": tp})
    layout = replace(setting, engine=engine).engine_layout() if setting.model.heads_divide(tp) else None
    if layout is not None:
        assert on_engine(layout, 1) == pytest.approx(elements(layout, 0), rel=1e-2)  # padding, whole norms


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([8192, 16384, 32768]), st.sampled_from([1, 2]))
def test_less_is_kept_with_more_ranks_fewer_tokens_and_recomputation(tp: int, tokens: int, pp: int) -> None:
    setting = replace(make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8), microbatch_tokens=tokens)
    here = setting.with_sharding(tp=tp, pp=pp)
    kept = memory.activations(here, 0)
    assert memory.activations(replace(here, microbatch_tokens=2 * tokens), 0) > kept
    assert memory.activations(replace(here, recompute="full"), 0) < kept
    assert memory.training(setting.with_sharding(tp=2 * tp, pp=pp), 0).peak < memory.training(here, 0).peak


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40))
def test_earlier_stages_hold_more_microbatches(pp: int, microbatches: int) -> None:
    setting = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8).with_sharding(pp=pp)
    held = [in_flight(setting, stage, microbatches) for stage in range(pp)]
    assert held == sorted(held, reverse=True) and held[-1] == 1 and held[0] == min(pp, microbatches)


def test_an_offload_leaves_only_the_policy() -> None:
    setting = make_setting("Qwen/Qwen2.5-7B-Instruct")
    held = memory.resident(setting, 0)
    kept = {how: held.after_offload(replace(setting, offload=how)) for how in ("none", "optimizer", "all")}
    assert kept["none"] == held
    assert kept["optimizer"].all == held.all - held.optimizer
    assert kept["all"].all == held.policy


def test_a_reward_model_is_counted_as_a_reference_of_its_own_size() -> None:
    """A judge of 7 B with a head of one number, beside a policy of 72 B; and on ranks of its own."""
    without = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8).with_sharding(tp=4)
    judge = without_vocabulary(make_setting("Qwen/Qwen2.5-7B-Instruct").model, head="value")
    setting = replace(without, frozen=(*without.frozen, "reward model"), reward_model=judge)
    more = memory.resident(setting, 0).others - memory.resident(without, 0).others
    assert more == 2 * on_stage(trainer_layout(setting.backend, judge, setting.train, fused=True), 0).all
    assert 2 * count(judge) / 4 < more < 2 * count(judge) / 3.9  # norms are on every rank
    dedicated = replace(setting, dedicated=(("reward model", TrainParallel(tp=2)),))
    assert memory.resident(dedicated, 0).others - memory.resident(without, 0).others > 1.9 * more
    away = replace(setting, offload="all")
    assert memory.resident(setting, 0).after_offload(away).others == 0
    for one in (setting, away):  # wherever it waits, it is there while it scores
        answering, scoring = memory.rollout(one, 0), memory.scoring(one, 0)
        assert scoring.weights - answering.weights == (more if one is away else 0)
        assert scoring.kv == answering.kv and scoring.activations > 0
    assert not replace(setting, reward_model=replace(judge, num_layers=27)).with_sharding(pp=2).divides()


LORA = LoraConfig(rank=16)


def test_adapters_alone_have_gradients_optimizer_and_checkpoint() -> None:
    """Rank 16: so many numbers for each input and each output of four linear layers of 28 layers."""
    whole = make_setting("Qwen/Qwen2.5-7B-Instruct")
    setting = replace(whole, lora=LORA)
    q, kv, hidden, ffn = 28 * 128, 4 * 128, 3584, 18944
    sides = (hidden + q + 2 * kv) + (q + hidden) + (hidden + 2 * ffn) + (ffn + hidden)
    numbers = 28 * 16 * sides
    held, before = memory.resident(setting, 0), memory.resident(whole, 0)
    assert held.gradients == 4 * numbers
    assert held.optimizer == pytest.approx(12 * numbers / 8)  # over eight replicas
    assert held.policy == before.policy + 2 * numbers
    assert memory.checkpoint_bytes(setting) == 14 * numbers
    on_cpu = replace(whole, fused=False)
    assert memory.activations(replace(on_cpu, lora=LORA), 0) < memory.activations(on_cpu, 0)


@pytest.mark.parametrize("axes", [{"tp": 2}, {"tp": 4, "pp": 2}, {"pp": 4, "dp": 2}])
def test_adapters_are_cut_as_their_layout_says(axes: dict[str, Any]) -> None:
    layout = replace(make_setting("Qwen/Qwen2.5-7B-Instruct").with_sharding(**axes), lora=LORA).adapters()
    assert layout is not None
    for stage in range(layout.base.pp):
        expected = elements(layout, layout.world_size // layout.base.pp * stage)
        assert on_stage(layout, stage).all == expected


def test_with_adapters_only_a_reference_apart_has_weights() -> None:
    setting = replace(make_setting("Qwen/Qwen2.5-7B-Instruct"), lora=LORA)
    assert setting.frozen == ("reference",) and memory.resident(setting, 0).others == 0
    dedicated = replace(setting, dedicated=(("reference", TrainParallel(tp=2)),))
    assert memory.resident(dedicated, 0).others > 7e9  # 2 bytes each, over two ranks


def test_ranks_beside_the_actors_have_activations_of_their_own() -> None:
    """A critic on one rank each, with long microbatches, beside an actor over four."""
    actor = make_setting("Qwen/Qwen2.5-7B-Instruct").with_sharding(tp=4)
    shared = replace(actor, trained=("actor", "critic"))
    dedicated = replace(
        shared, dedicated=(("critic", TrainParallel()),), dedicated_tokens=(("critic", 32768),)
    )
    own = memory.activations(dedicated.alone("critic"), 0)
    shorter = replace(dedicated, dedicated_tokens=(("critic", 16384),))
    assert own > 1.9 * memory.activations(shorter.alone("critic"), 0)
    assert memory.training(dedicated, 0).activations == memory.activations(actor, 0) + own
    assert memory.training(shared, 0).activations == memory.training(actor, 0).activations
    asked = replace(actor, dedicated=(("reference", TrainParallel(tp=2)),))
    assert memory.logprobs(asked, 0).activations > memory.logprobs(actor, 0).activations


def test_fp8_holds_the_layers_weights_twice_more_in_one_byte() -> None:
    plain = make_setting("Qwen/Qwen2.5-7B-Instruct").with_sharding(tp=2)
    setting = replace(plain, fp8_share=0.5)
    layers = 28 * (3584 * (28 + 8) * 128 + 28 * 128 * 3584 + 3 * 3584 * 18944) / 2
    assert memory.resident(setting, 0).fp8 == pytest.approx(layers, rel=1e-3)  # two bytes of half of them
    more = memory.training(setting, 0).peak - memory.training(plain, 0).peak
    assert more == pytest.approx(memory.resident(setting, 0).fp8)
    away = memory.resident(setting, 0).after_offload(replace(setting, offload="all"))
    assert away.fp8 == memory.resident(setting, 0).fp8 and away.optimizer == 0


def test_a_checkpoint_of_72b_is_a_terabyte() -> None:
    """72.7 B weights of 2 bytes, and 12 bytes of optimizer each."""
    setting = make_setting("Qwen/Qwen2.5-72B-Instruct", nodes=8)
    assert memory.checkpoint_bytes(setting) == pytest.approx(72.7e9 * 14, rel=1e-3)


@pytest.mark.slow
def test_predicted_peaks_are_within_ten_percent_of_measured_ones() -> None:
    for row in compare([SHAPES[0], SHAPES[11], SHAPES[16]]):
        assert abs(row["error"]) < 0.1, row


def test_the_estimate_holds_as_many_logits_as_the_trainer() -> None:
    assert activations.LOGITS_AT_ONCE == linear_logprob.LOGITS_AT_ONCE


def test_an_engine_that_answers_while_the_trainer_works_keeps_its_cache() -> None:
    asleep = make_setting("Qwen/Qwen2.5-7B-Instruct")
    awake = replace(asleep, engines_sleep=False)
    cache = memory.kv_bytes(asleep)
    assert cache > 0
    for phase in (memory.training, memory.logprobs):
        assert phase(awake, 0).peak == pytest.approx(phase(asleep, 0).peak + cache)
    assert memory.rollout(awake, 0) == memory.rollout(asleep, 0)


def test_the_lag_and_the_kind_of_swap_decide_whether_engines_sleep() -> None:
    asleep = {
        (lag, swap): make_setting("Qwen/Qwen2.5-7B-Instruct", lag=lag, swap=swap).engines_sleep
        for lag, swap in ((0, "drain"), (1, "drain"), (1, "in_flight"))
    }
    assert asleep == {(0, "drain"): True, (1, "drain"): False, (1, "in_flight"): True}
