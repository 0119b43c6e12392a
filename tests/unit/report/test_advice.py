"""Every rule of advice finds its illness in a run that has it, and not in one that has not."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import report_values as values

from hybridrl.config.load import load
from hybridrl.report.advice import advise, lines, short
from hybridrl.report.evidence import Condition
from hybridrl.report.rules import RULES, Change
from hybridrl.report.run_data import RunData, read_run
from hybridrl.report.series import series_of

CURVES = Path(__file__).with_name("curves")


def falls(first: float, last: float, steps: int = 20) -> values.Value:
    return lambda step: first + (last - first) * (step - 1) / (steps - 1)


SICK: Mapping[str, tuple[dict[str, values.Value], dict[str, values.Value]]] = {
    "nothing is rewarded": (
        {"critic/score/max": 0.0, "critic/score/mean": 0.0},
        {
            "critic/score/max": lambda step: float(step > 4),
            "critic/score/mean": lambda step: 0.1 * (step > 4),
        },
    ),
    "format reward is never met": ({"reward/format/mean": 0.0}, {"reward/format/mean": falls(0.0, 0.9)}),
    "entropy collapse": (
        {
            "actor/entropy": falls(0.85, 0.29),
            "rollout/zero_std": falls(0.62, 1),
            "rollout/zero_std_none": 0.6,
        },
        {"actor/entropy": falls(0.85, 0.29), "rollout/zero_std": 0.7, "rollout/zero_std_none": 0.01},
    ),
    "entropy explosion": (
        {"actor/entropy": falls(0.5, 4.0), "critic/score/mean": falls(0.5, 0.4)},
        {"actor/entropy": falls(0.5, 4.0), "critic/score/mean": falls(0.2, 0.8)},
    ),
    "flat groups": (
        {"rollout/zero_std": 0.9, "rollout/zero_std_none": 0.8},
        {"rollout/zero_std": 0.4, "rollout/zero_std_none": 0.35},
    ),
    "all solved": ({"rollout/zero_std_all": 0.8}, {"rollout/zero_std_all": 0.3}),
    "length creep": (
        {"response_length/mean": falls(300, 900), "critic/score/mean": 0.5},
        {"response_length/mean": falls(300, 900), "critic/score/mean": falls(0.2, 0.8)},
    ),
    "truncation": (
        {"response_length/clip_ratio": 0.6, "critic/score/mean": 0.2, "critic/score/max": 1.0},
        {"response_length/clip_ratio": 0.6, "critic/score/mean": 0.97, "critic/score/max": 1.0},
    ),
    "reward follows length": (
        {"response_length/mean": falls(100, 900), "critic/score/mean": falls(0.1, 0.9)},
        {"response_length/mean": falls(900, 100), "critic/score/mean": falls(0.1, 0.9)},
    ),
    "KL runaway": ({"actor/kl_loss": falls(0.01, 2.0)}, {"actor/kl_loss": falls(0.001, 0.05)}),
    "clip fraction": ({"actor/pg_clipfrac": 0.35}, {"actor/pg_clipfrac": 0.05}),
    "trainer and engine disagree more and more": (
        {"training/rollout_probs_diff_mean": falls(0.004, 0.03)},
        {"training/rollout_probs_diff_mean": falls(0.0001, 0.0005)},
    ),
    "stale answers": ({"rollout/lag/mean": 6.0}, {"rollout/lag/mean": 1.0}),
    "stale answers are thrown away": ({"goodput/stale": 0.3}, {"goodput/stale": 0.02}),
    "idle engines": ({"goodput/idle": 0.6}, {"goodput/idle": 0.05}),
    "idle ranks": ({"perf/dp_idle_share": 0.3}, {"perf/dp_idle_share": 0.01}),
    "critic explains nothing": (
        {"critic/vf_explained_var": -0.2},
        {"critic/vf_explained_var": falls(-0.2, 0.6)},
    ),
}
"""Rule -> metrics of a run that has its illness, and of one that has not."""


def names(run: RunData) -> set[str]:
    return {advice.rule.name for advice in advise(run)}


def run(folder: Path, metrics: Mapping[str, values.Value], **config: object) -> RunData:
    return read_run(values.run_folder(folder, metrics=metrics, **config))


@pytest.mark.parametrize("name", SICK)
def test_a_rule_finds_its_illness_and_no_other_run_ill(tmp_path: Path, name: str) -> None:
    sick, well = SICK[name]
    assert name in names(run(tmp_path / "sick", sick))
    assert name not in names(run(tmp_path / "well", well))


RECORDED = {
    "quickstart": {"all solved", "idle engines"},
    "sums_half_learned": {"truncation", "entropy collapse", "flat groups"},
    "sums_with_reference": {"truncation", "KL runaway"},
    "sums_with_critic": {"truncation", "critic explains nothing"},
    "prompts_too_hard": {"flat groups", "idle engines"},
    "old_answers": {"flat groups", "idle engines", "stale answers"},
    "lookup": {"all solved", "idle engines", "reward follows length"},
}
"""Runs on real engines whose metrics were recorded -> the rules that hold, and no other does.

sums_half_learned ended at a held-out reward of 0.59, its entropy at a third of the first. old_answers and
prompts_too_hard never earned a reward on held-out prompts.
"""


@pytest.mark.parametrize("name", RECORDED)
def test_advice_about_a_recorded_run(tmp_path: Path, name: str) -> None:
    found = json.loads((CURVES / f"{name}.json").read_text())
    metrics = {metric: _column(values_S) for metric, values_S in found["metrics"].items()}
    folder = values.run_folder(tmp_path / "a", steps=found["steps"], metrics=metrics)
    assert names(read_run(folder)) == RECORDED[name]


def _column(values_S: list[float]) -> values.Value:
    return lambda step: values_S[step - 1]


def test_every_rule_is_tried() -> None:
    assert [rule.name for rule in RULES] == list(SICK)


@pytest.mark.parametrize("change", {f"{c.key}={c.to}": c for rule in RULES for c in rule.changes}.values())
def test_a_change_is_one_that_a_config_takes(tmp_path: Path, change: Change) -> None:
    given = {
        "model": "m",
        "data": {"train": "d.jsonl"},
        "reward": "exact_match",
        "run": {"name": "a", "steps": 9},
    }
    (tmp_path / "a.yaml").write_text(
        json.dumps({**given, "batch": {"prompts_per_step": 8}, "algorithm": {"loss": "ppo_clip"}})
    )
    value = "1" if change.to is None else change.to
    assert load(tmp_path / "a.yaml", [f"{change.key}={value}"])


def test_evidence_says_what_was_measured(tmp_path: Path) -> None:
    sick = run(
        tmp_path / "a", SICK["entropy collapse"][0], algorithm__loss__clip_high=0.2, actor__optimizer__lr=1e-6
    )
    (first, *_) = [advice for advice in advise(sick) if advice.rule.name == "entropy collapse"]
    assert first.evidence[0] == "actor/entropy fell from 0.7763 to 0.3637 in 20 steps"
    assert first.changes == (
        "algorithm.loss.clip_high=0.28",
        "algorithm.entropy_coefficient=0.01",
        "actor.optimizer.lr=3e-07",
    )
    text = "\n".join(line for _, line in lines([first]))
    assert "arXiv:2503.14476" in text and "try algorithm.loss.clip_high=0.28  or  " in text


def test_what_a_run_has_already_is_not_proposed(tmp_path: Path) -> None:
    sick = run(tmp_path / "a", SICK["entropy collapse"][0], algorithm__loss__clip_high=0.5)
    (first, *_) = [advice for advice in advise(sick) if advice.rule.name == "entropy collapse"]
    assert first.changes == ("algorithm.entropy_coefficient=0.01",)  # it has no learning rate to lower


def test_eight_steps_are_no_evidence(tmp_path: Path) -> None:
    folder = values.run_folder(tmp_path / "a", steps=8, metrics=SICK["flat groups"][0])
    assert not advise(read_run(folder))


def test_advice_about_learning_comes_before_advice_about_time(tmp_path: Path) -> None:
    found = advise(
        run(tmp_path / "a", {"perf/dp_idle_share": 0.5, "critic/vf_explained_var": 0.0, "goodput/idle": 0.9})
    )
    assert [advice.rule.is_speed for advice in found] == sorted(advice.rule.is_speed for advice in found)
    assert len(found) == 3


def test_a_healthy_run_gets_no_advice(tmp_path: Path) -> None:
    found = advise(run(tmp_path / "a", {"goodput/idle": 0.1}))
    assert list(lines(found)) == [("advice", "nothing: no rule holds")]


def test_a_correlation_needs_two_metrics_that_move() -> None:
    condition = Condition(metric="a", of="correlation", other="b", above=0.5)
    still, moving = [1.0] * 12, list(map(float, range(12)))

    def steps(a, b):
        from hybridrl.observe.record import Record

        return series_of(
            Record(kind="step", step=i, time=0, wall_s=0, metrics={"a": x, "b": y})
            for i, (x, y) in enumerate(zip(a, b, strict=True))
        )

    assert condition.evidence(steps(moving, moving)) == "a and b have correlation 1.00"
    assert condition.evidence(steps(moving, still)) is None and condition.evidence({}) is None


def test_the_last_lines_of_a_run_name_what_keeps_it_from_learning(tmp_path: Path) -> None:
    sick = run(tmp_path / "a", {**SICK["all solved"][0], "goodput/idle": 0.9})
    first, last = short(sick)
    what = "rollout/zero_std_all is 0.8 in the last 6 steps"
    assert first == f"  advice   all solved: {what} -> algorithm.dynamic_sampling={{}}"
    assert last.endswith("--text says why")
    assert not list(short(run(tmp_path / "b", {"goodput/idle": 0.9})))
