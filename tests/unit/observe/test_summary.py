"""What is said of a run when it is over."""

import math

import observe_values as values
import pytest

from hybridrl.observe.summary import closing_lines, summarise, versions

STEP = {
    "timing_s/step": 4.0,
    "timing_s/gen": 2.0,
    "timing_s/update_actor": 1.5,
    "sync/checksum_ok": 1.0,
    "perf/total_num_tokens": 100.0,
    "training/first_ratio_max_abs_err": 0.0,
}


def run(**last) -> list:
    """Two steps between two evaluations; `last` changes metrics of the second."""
    gap = "training/rollout_logp_diff_max"
    first, second = STEP | {gap: 2e-6}, STEP | {gap: 1e-6}
    return [
        values.heldout(0, 0.1),
        values.record(1, **first),
        values.record(2, **(second | last)),
        values.record(2, kind="evaluation", **{"val-core/a/reward/mean_at_1": 0.9, "timing_s/testing": 0.5}),
    ]


def test_a_run_in_numbers() -> None:
    assert summarise(run(), {"save_checkpoint": 3.0}) == {
        "heldout_before": 0.1,
        "heldout_after": 0.9,
        "train_wall_s": 2.0,
        "steps": 2,
        "logprob_max_abs_diff": 2e-6,
        "first_ratio_max_abs_err": 0.0,
        "swap_checksums_ok": True,
        "swaps": 2,
        "largest_lag": 0,
        "overhead_share": 0.125,
        "seconds_by_phase": {
            "save_checkpoint": 3.0,
            "step": 8.0,
            "gen": 4.0,
            "update_actor": 3.0,
            "testing": 0.5,
        },
        "non_finite_metrics": 0,
        "tokens": 200,
        "rollout_tokens": {},
        "goodput": {},
    }


def test_tokens_add_up_and_engine_time_is_weighed_by_the_time_of_steps() -> None:
    first = {"perf/time_per_step": 1.0, "goodput/with_gradient": 1.0, "goodput/idle": 0.0}
    second = {"perf/time_per_step": 3.0, "goodput/with_gradient": 0.2, "goodput/idle": 0.8}
    tokens = {"rollout/tokens/sampled": 10.0, "rollout/tokens/in_flight": 4.0}
    summary = summarise([values.record(1, **first, **tokens), values.record(2, **second, **tokens)], {})
    assert summary["rollout_tokens"] == {"sampled": 20, "in_flight": 4}
    assert summary["goodput"] == {"with_gradient": pytest.approx(0.4), "idle": pytest.approx(0.6)}
    assert "engine time: idle 60%, with gradient 40%" in closing_lines(summary, "reward", {}, [])


def test_a_gap_to_older_policies_is_not_called_a_disagreement() -> None:
    summary = summarise(run(**{"rollout/lag/max": 2.0}), {})
    lines = closing_lines(summary, "reward", {}, [])
    assert any("answers are up to 2 updates old, and up to 2.0e-06 nats" in line for line in lines)
    assert not any("agree" in line for line in lines)


def test_one_bad_step_shows() -> None:
    records = run(**{"sync/checksum_ok": 0.0, "training/first_ratio_max_abs_err": 0.5})
    summary = summarise(records, {})
    assert (summary["swap_checksums_ok"], summary["first_ratio_max_abs_err"]) == (False, 0.5)
    assert "CHECKSUMS DIFFER" in closing_lines(summary, "reward", {}, [])[1]


def test_a_gap_that_is_not_a_number_does_not_pass_for_a_small_one() -> None:
    summary = summarise(run(**{"training/rollout_logp_diff_max": math.nan}), {})
    assert (summary["logprob_max_abs_diff"], summary["non_finite_metrics"]) == (None, 1)


def test_a_swap_that_was_not_checked_is_not_called_good() -> None:
    assert summarise([values.record(1, **{"timing_s/step": 1.0})], {})["swap_checksums_ok"] is False


def test_swaps_through_the_loader_of_the_engine_are_not_called_checked() -> None:
    step = {"timing_s/step": 1.0, "sync/in_place": 0.0, "training/rollout_logp_diff_max": 1e-6}
    summary = summarise([values.record(1, **step)], {})
    assert summary["swap_checksums_ok"] is None
    assert closing_lines(summary, "reward", {}, [])[1].endswith("1 swap, through the engine's own loader")


def test_a_run_that_stopped_says_where_and_how_it_goes_on() -> None:
    summary = summarise(run(), {}) | {"stopped_by": "SIGTERM"}
    lines = closing_lines(summary, "reward", {}, [])
    assert lines[0] == "stopped at step 2 by SIGTERM, --resume continues"
    bare = summarise([values.record(2, **{"timing_s/step": 1.0})], {}) | {"stopped_by": "SIGUSR1"}
    assert closing_lines(bare, "reward", {}, []) == ["stopped at step 2 by SIGUSR1, --resume continues"]


def test_what_was_not_measured_is_null() -> None:
    summary = summarise([], {})
    missing = ("heldout_before", "heldout_after", "logprob_max_abs_diff", "swap_checksums_ok")
    assert [summary[name] for name in missing] == [None] * 4
    assert closing_lines(summary, "reward", {}, []) == ["done in 0 steps, 0 ms"]


def test_the_last_lines() -> None:
    following = [("hybridrl launch b.yaml", "a real model"), ("hybridrl plan c.yaml", "a cluster")]
    assert closing_lines(summarise(run(), {}), "accuracy", {"curve": "runs/a/reward.png"}, following) == [
        "held-out accuracy 0.10 -> 0.90 in 2 steps, 2.0 s",
        "trainer and engine agree to 2.0e-06 nats; 2 swaps, all checksums equal",
        "  curve    runs/a/reward.png",
        "next: hybridrl launch b.yaml   a real model",
        "      hybridrl plan c.yaml     a cluster",
    ]


def test_versions_are_those_installed() -> None:
    assert {"torch", "numpy"} <= versions().keys()
