"""Metrics of a policy update against numbers worked out by hand."""

from dataclasses import replace

import observe_values as values
import pytest

from hybridrl.batch import Minibatch
from hybridrl.observe import metrics
from hybridrl.observe.names import METRICS, describe, over, safe

LIMITS = metrics.Limits(max_prompt_tokens=4, num_devices=2)


def full_step() -> dict[str, float]:
    spans = (
        "step",
        "wait_for_batch",
        "gen",
        "reward",
        "adv",
        "old_log_prob",
        "update_actor",
        "update_weights",
    )
    packed = values.batch(
        [[values.trajectory(1.0, tokens=2), values.trajectory(0.0, tokens=4, finish="length")]]
    )
    report = values.report(entropy=1.0, ratio_max_abs_err=0.0, pg_loss=0.1)
    return metrics.step_metrics(packed, [report], values.SWAP, dict.fromkeys(spans, 1.0), LIMITS)


def test_scores_and_advantages() -> None:
    packed = values.batch([[values.trajectory(1.0, tokens=3), values.trajectory(0.0, tokens=1)]])
    found = metrics.reward_metrics(packed)
    assert [found[f"critic/score/{k}"] for k in ("mean", "max", "min")] == [0.5, 1.0, 0.0]
    assert [found[f"critic/rewards/{k}"] for k in ("mean", "max", "min")] == [0.5, 1.0, 0.0]
    # over tokens: three of advantage 0.5, one of -0.5
    assert [found[f"critic/advantages/{k}"] for k in ("mean", "max", "min")] == [0.25, 0.5, -0.5]


def test_an_answer_without_trained_tokens_has_no_advantage() -> None:
    packed = values.batch([[values.trajectory(1.0), values.trajectory(0.0, tokens=0, finish="abort")]])
    assert metrics.reward_metrics(packed)["critic/advantages/min"] == 0.5


def test_advantages_made_on_the_trainer_are_not_invented_here() -> None:
    packed = values.batch([[values.trajectory(1.0)]])
    packed.advantage_N = None
    assert not [name for name in metrics.reward_metrics(packed) if name.startswith("critic/advantages")]


def test_parts_of_a_reward_are_means_over_those_that_have_them() -> None:
    packed = values.batch(
        [[values.trajectory(1.0, format=1.0), values.trajectory(0.0, format=0.5), values.trajectory(0.0)]]
    )
    assert metrics.reward_metrics(packed)["reward/format/mean"] == 0.75


def test_answers_that_time_out_are_a_share_of_all() -> None:
    packed = values.batch(
        [[values.trajectory(0.0, timeout=1.0), *(values.trajectory(1.0) for _ in range(3))]]
    )
    assert metrics.reward_metrics(packed)["reward/timeout/mean"] == 0.25
    none = values.batch([[values.trajectory(1.0)]])
    assert "reward/timeout/mean" not in metrics.reward_metrics(none)


def test_scores_of_a_reward_model_are_told_with_their_spread() -> None:
    scored = [values.trajectory(0.0, reward_model=score, rule=1.0) for score in (3.0, -1.0)]
    found = metrics.reward_metrics(values.batch([scored]))
    assert [found[f"reward_model/score/{k}"] for k in ("mean", "max", "min")] == [1.0, 3.0, -1.0]
    assert found["reward/rule/mean"] == 1.0 and "reward/reward_model/mean" not in found
    assert "reward_model/score/max" in METRICS


def test_flat_groups_are_told_apart() -> None:
    rewards = [(1, 1), (0, 0), (0, 0), (1, 0)]
    found = metrics.group_metrics(values.batch([[values.trajectory(r) for r in group] for group in rewards]))
    assert found == {"rollout/zero_std": 0.75, "rollout/zero_std_all": 0.25, "rollout/zero_std_none": 0.5}


def test_lengths() -> None:
    answers = [
        values.trajectory(0.0, tokens=4, finish="length"),
        values.trajectory(0.0, tokens=2),
        values.trajectory(0.0, tokens=0, finish="abort"),
        values.trajectory(0.0, tokens=6),
    ]
    found = metrics.length_metrics(values.batch([answers]), LIMITS)
    assert [found[f"response_length/{k}"] for k in ("mean", "max", "min", "clip_ratio")] == [
        3.0,
        6.0,
        0.0,
        0.25,
    ]
    assert [found[f"response_length_non_aborted/{k}"] for k in ("mean", "max", "min")] == [4.0, 6.0, 2.0]
    assert [found[f"prompt_length/{k}"] for k in ("mean", "max", "min", "clip_ratio")] == [3.0, 3.0, 3.0, 0.0]
    assert found["response/aborted_ratio"] == 0.25
    assert found["perf/total_num_tokens"] == 24.0


def test_optimizer_steps_combine_as_their_names_say() -> None:
    first = values.report(pg_loss=1.0, ratio_max_abs_err=0.0, my_max=1.0, my_min=1.0, kl_coef=0.2)
    second = values.report(pg_loss=3.0, ratio_max_abs_err=0.5, my_max=5.0, my_min=-1.0, kl_coef=0.1)
    found = metrics.update_metrics([first, second])
    assert found["actor/pg_loss"] == 2.0
    assert (found["actor/ratio_max_abs_err"], found["training/first_ratio_max_abs_err"]) == (0.5, 0.0)
    assert (found["actor/my_max"], found["actor/my_min"], found["actor/kl_coef"]) == (5.0, -1.0, 0.1)
    assert (found["actor/loss"], found["actor/grad_norm"], found["actor/lr"]) == (0.25, 0.5, 5e-4)
    assert found["actor/num_updates"] == 2.0


def test_a_metric_of_some_optimizer_steps_is_combined_over_those() -> None:
    found = metrics.update_metrics([values.report(entropy=2.0), values.report()])
    assert found["actor/entropy"] == 2.0


def test_times_per_token_and_throughput() -> None:
    packed = values.batch([[values.trajectory(0.0, tokens=2), values.trajectory(0.0, tokens=2)]])  # 10 tokens
    found = metrics.time_metrics(
        packed, {"step": 5.0, "gen": 2.0, "update_actor": 1.0, "reward": 0.5}, num_devices=2
    )
    assert found["timing_per_token_ms/gen"] == 500.0  # over the 4 tokens of the answers
    assert found["timing_per_token_ms/update_actor"] == 100.0
    assert "timing_per_token_ms/reward" not in found
    assert (found["perf/throughput"], found["perf/time_per_step"]) == (1.0, 5.0)
    assert found["perf/overhead_share"] == pytest.approx(0.4, abs=1e-12)


def test_overlapping_phases_have_no_negative_overhead() -> None:
    assert metrics.overhead_share({"step": 1.0, "gen": 1.0, "update_actor": 0.9}) == 0.0


def test_balance_counts_one_pass_over_the_batch() -> None:
    packed = values.batch([[values.trajectory(0.0, tokens=n) for n in (1, 2, 3, 4)]])  # 4, 5, 6, 7 tokens
    partitioned = [(0, 1), (2, 3)] * 2  # to rank 0 and to rank 1, by two minibatches, in two epochs
    minibatches = [
        Minibatch(i, rows=(((a,),), ((b,),)), num_tokens=1, num_sequences=2, idle_share=0.1 * i)
        for i, (a, b) in enumerate(partitioned)
    ]
    found = metrics.balance_metrics(packed, minibatches)
    assert found == {
        "global_seqlen/min": 10.0,
        "global_seqlen/max": 12.0,
        "global_seqlen/minmax_diff": 2.0,
        "global_seqlen/mean": 11.0,
        "perf/dp_idle_share": pytest.approx(0.15),
    }


def test_a_swap_is_reported_whole() -> None:
    assert metrics.sync_metrics(values.SWAP) == {
        "sync/time_s": 0.008,
        "sync/written_bytes": 1800.0,
        "sync/sent_bytes": 0.0,
        "sync/staging_bytes": 64.0,
        "sync/tensors": 26.0,
        "sync/checksum_ok": 1.0,
        "sync/in_place": 1.0,
        "sync/replays": 0.0,
    }


def test_checksums_that_nobody_compared_are_not_reported_as_equal() -> None:
    found = metrics.sync_metrics(replace(values.SWAP, checksums_equal=None))
    assert "sync/checksum_ok" not in found and found["sync/in_place"] == 0.0


def test_memory_is_that_of_this_process_and_machine() -> None:
    before = metrics.memory_metrics()
    held = bytearray(b"x" * 2**28)
    after = metrics.memory_metrics()
    assert after["perf/driver_memory_gb"] - before["perf/driver_memory_gb"] > 0.2, len(held)
    assert after["perf/cpu_memory_used_gb"] > 0


def test_an_evaluation_is_one_number_over_its_sources() -> None:
    found = {
        "val-core/a/reward/mean_at_4": 0.5,
        "val-core/b/reward/mean_at_4": 1.0,
        "val-core/a/reward/best_at_4": 1.0,
    }
    assert metrics.heldout_reward(found) == 0.75
    assert metrics.heldout_reward({"val-core/a/reward/best_at_4": 1.0}) is None


def test_every_metric_is_documented() -> None:
    assert [name for name in {**full_step(), **metrics.memory_metrics()} if describe(name) is None] == []
    assert all(metric.meaning and metric.unit for metric in METRICS.values())


def test_names_of_verl_are_kept() -> None:
    kept = {
        "critic/score/mean",
        "critic/advantages/max",
        "response_length/clip_ratio",
        "prompt_length/min",
        "actor/pg_loss",
        "actor/grad_norm",
        "actor/lr",
        "actor/entropy",
        "timing_s/gen",
        "timing_s/update_actor",
        "timing_per_token_ms/gen",
        "perf/throughput",
        "perf/total_num_tokens",
        "training/global_step",
    }
    assert kept <= full_step().keys()


def test_verl_names_become_safe_ones() -> None:
    assert safe("val-core/my set/reward/mean@4") == "val-core/my set/reward/mean_at_4"
    assert safe("reward/α:β/../x//mean") == "reward/___/x/mean"
    assert all(safe(name) == name for name in METRICS)


def test_how_a_metric_combines_is_in_the_table_or_in_its_name() -> None:
    assert (over("actor/lr"), over("actor/pg_loss"), over("my/loss/max"), over("my_min")) == (
        "last",
        "mean",
        "max",
        "min",
    )


def test_turns_and_ends_of_episodes() -> None:
    played = [
        replace(values.trajectory(1.0), turns=turns, ended=ended)
        for turns, ended in ((1, "done"), (3, "done"), (4, "max_turns"), (0, "overflow"))
    ]
    found = metrics.turn_metrics(values.batch([played]))
    assert [found[f"num_turns/{k}"] for k in ("mean", "max", "min")] == [2.0, 4.0, 0.0]
    assert {name: share for name, share in found.items() if name.startswith("episode/") and share} == {
        "episode/ended/done": 0.5,
        "episode/ended/max_turns": 0.25,
        "episode/ended/overflow": 0.25,
    }
    assert found.keys() <= METRICS.keys()
    assert metrics.turn_metrics(values.batch([[values.trajectory(1.0)]])) == {}
