"""The observer of a run: what the loop tells it ends up in the files of the run folder."""

import gc
import io
import json
import time
import weakref
from pathlib import Path

import observe_values as values
import pytest

from hybridrl.errors import RunFolderError
from hybridrl.observe import rollouts
from hybridrl.observe.jsonl import read
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.types import InspectedTrajectory


def observer(folder: Path, stream: io.StringIO, *, resume_step: int | None = None) -> RunObserver:
    (folder / "a").mkdir(exist_ok=True)
    return RunObserver(values.config(folder), Terminal(stream), resume_step=resume_step, num_devices=1)


def evaluate(observe: RunObserver, step: int, reward: float) -> None:
    with observe.span("testing"):
        observe.evaluation(step, {"val-core/digits/reward/mean@1": reward})


def train(observe: RunObserver, step: int, *, reward: float = 1.0, text: str | None = None) -> None:
    with observe.span("step"), observe.span("gen"):
        packed = values.batch([[values.trajectory(reward, text=text), values.trajectory(0.0)]], step=step)
    report = values.report(step, ratio_max_abs_err=0.0, entropy=0.5)
    observe.step(step, packed, [report], values.SWAP, {"training/rollout_logp_diff_max": 1e-6})


def play(folder: Path, steps: range, *, resume_step: int | None = None) -> str:
    """A session; returns what the person saw."""
    stream = io.StringIO()
    with observer(folder, stream, resume_step=resume_step) as observe:
        if resume_step is None:
            evaluate(observe, 0, 0.25)
        for step in steps:
            train(observe, step, text=f"answer {step}")
        evaluate(observe, steps[-1], 0.75)
        with observe.span("save_checkpoint"):
            pass
        observe.finish({"model": "runs/a/export/"}, [("hybridrl launch b.yaml", "a real model")])
    return stream.getvalue()


def test_a_run_leaves_its_files(tmp_path) -> None:
    play(tmp_path, range(1, 5))
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {"metrics.jsonl", "samples.txt", "reward.png", "summary.json", "doing.json"}


def test_the_summary_has_the_run_and_the_facts(tmp_path) -> None:
    with observer(tmp_path, io.StringIO()) as observe:
        evaluate(observe, 0, 0.25)
        train(observe, 1)
        evaluate(observe, 1, 0.75)
        with observe.span("save_checkpoint"):
            pass
        told = observe.finish({}, [], {"machine": {"cores": 2}})
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary == told
    assert (summary["heldout_before"], summary["heldout_after"], summary["steps"]) == (0.25, 0.75, 1)
    assert (summary["logprob_max_abs_diff"], summary["first_ratio_max_abs_err"]) == (1e-6, 0.0)
    assert (
        summary["swap_checksums_ok"] is True and summary["machine"] == {"cores": 2} and summary["seed"] == 0
    )
    assert summary["seconds_by_phase"].keys() == {"testing", "step", "gen", "save_checkpoint"}
    assert 0 <= summary["train_wall_s"] < 60  # in tenths


def test_metrics_of_the_trainer_win(tmp_path) -> None:
    with observer(tmp_path, io.StringIO()) as observe, observe.span("step"):
        packed = values.batch([[values.trajectory(1.0)]])
        observe.step(1, packed, [values.report(entropy=1.0)], values.SWAP, {"actor/entropy": 2.0})
    (record,) = read(tmp_path / "a" / "metrics.jsonl")
    assert record.metrics["actor/entropy"] == 2.0
    assert record.metrics["timing_s/step"] > 0


def test_names_are_made_safe(tmp_path) -> None:
    play(tmp_path, range(1, 5))
    first = read(tmp_path / "a" / "metrics.jsonl")[0]
    assert first.kind == "evaluation" and first.metrics["val-core/digits/reward/mean_at_1"] == 0.25


def test_evaluation_takes_its_time_out_of_the_steps(tmp_path) -> None:
    play(tmp_path, range(1, 5))
    records = read(tmp_path / "a" / "metrics.jsonl")
    assert ["timing_s/testing" in r.metrics for r in records] == [r.kind == "evaluation" for r in records]


def test_training_time_begins_after_the_first_evaluation(tmp_path) -> None:
    with observer(tmp_path, io.StringIO()) as observe:
        with observe.span("testing"):
            time.sleep(0.1)
            observe.evaluation(0, {})
        train(observe, 1)
    evaluation, step = read(tmp_path / "a" / "metrics.jsonl")
    apart_s, rounding_s = step.time - evaluation.time, 0.002
    assert evaluation.metrics["timing_s/testing"] >= 0.1
    assert step.metrics["timing_s/step"] - rounding_s <= step.wall_s <= apart_s + rounding_s


def test_a_resumed_run_goes_on_where_it_was(tmp_path) -> None:
    play(tmp_path, range(1, 4))
    first = read(tmp_path / "a" / "metrics.jsonl")
    play(tmp_path, range(3, 5), resume_step=2)
    records = read(tmp_path / "a" / "metrics.jsonl")
    assert [(r.kind, r.step) for r in records] == [
        ("evaluation", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("step", 4),
        ("evaluation", 4),
    ]
    assert records[:3] == first[:3]
    assert [r.wall_s for r in records] == sorted(r.wall_s for r in records)
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["heldout_before"] == 0.25
    samples = (tmp_path / "a" / "samples.txt").read_text()
    assert [samples.count(f"answer {step}") for step in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_another_run_is_not_overwritten(tmp_path) -> None:
    play(tmp_path, range(1, 5))
    with pytest.raises(RunFolderError, match="already"):
        observer(tmp_path, io.StringIO())


def test_a_run_that_fails_keeps_its_metrics(tmp_path) -> None:
    with pytest.raises(ValueError), observer(tmp_path, io.StringIO()) as observe:
        train(observe, 1)
        with observe.span("step"):
            raise ValueError("the engine broke")
    assert [r.step for r in read(tmp_path / "a" / "metrics.jsonl")] == [1]


def test_the_person_is_told_the_result(tmp_path) -> None:
    lines = play(tmp_path, range(1, 5)).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("held-out"))
    assert lines[at].startswith("held-out accuracy 0.25 -> 0.75 in 4 steps, ")
    assert lines[at + 1] == "trainer and engine agree to 1.0e-06 nats; 4 swaps, all checksums equal"
    folder = tmp_path / "a"
    assert lines[at + 2 :] == [
        f"  curve    {folder}/reward.png",
        "  model    runs/a/export/",
        f"  samples  {folder}/samples.txt",
        f"  metrics  {folder}/metrics.jsonl",
        "next: hybridrl launch b.yaml   a real model",
    ]


def test_a_run_that_stopped_says_so_on_the_screen_and_in_its_summary(tmp_path) -> None:
    stream = io.StringIO()
    with observer(tmp_path, stream) as observe:
        train(observe, 1)
        observe.finish({}, [], stopped_by="SIGTERM")
    assert "stopped at step 1 by SIGTERM, --resume continues" in stream.getvalue()
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["stopped_by"] == "SIGTERM"


def test_rewards_that_are_not_zero_or_one_are_no_accuracy(tmp_path) -> None:
    stream = io.StringIO()
    with observer(tmp_path, stream) as observe:
        train(observe, 1, reward=0.5)
        evaluate(observe, 1, 0.5)
        observe.finish({}, [])
    assert "held-out reward 0.50 -> 0.50" in stream.getvalue()


def test_an_observer_holds_on_to_no_batch(tmp_path) -> None:
    with observer(tmp_path, io.StringIO()) as observe:
        packed = values.batch([[values.trajectory(1.0, text="2")]])
        rewards = weakref.ref(packed.reward_N)
        observe.step(1, packed, [values.report()], values.SWAP, {})
        del packed
        gc.collect()
        assert rewards() is None


def test_what_a_run_does_is_known_while_it_does_it_and_after_an_error(tmp_path) -> None:
    with pytest.raises(KeyError), observer(tmp_path, io.StringIO()) as observe:
        assert (observe.step_now, observe.running) == (1, [])
        with observe.span("testing"):
            assert observe.step_now == 0
        train(observe, 1)
        with observe.span("save_checkpoint"):
            assert observe.step_now == 1
        with observe.span("step"), observe.span("update_actor"):
            raise KeyError
    assert observe.step_now == 2
    assert [name for name, _ in observe.running] == ["step", "update_actor"]
    found = json.loads((tmp_path / "a" / "doing.json").read_text())
    assert found["step"] == 2 and found["end"] == "KeyError: "


def test_rollouts_are_written_with_their_tokens_and_why(tmp_path: Path) -> None:
    packed = values.batch([[values.trajectory(0.0), values.trajectory(1.0)]], step=3)
    found = InspectedTrajectory(
        index=1,
        token_ids=(1, 2, 3, 4, 5),
        prompt_tokens=3,
        trained=(False, False, False, True, True),
        rollout_logp=(-1.0, -1.0),
        old_logp=(-1.0, -1.5),
        advantage=(0.5, 0.5),
        suspicious=True,
    )
    with observer(tmp_path, io.StringIO()) as observe:
        observe.rollouts(packed, [found], {1: ("best",)})
    (line,) = rollouts.read(tmp_path / "a" / "rollouts.jsonl", [3])
    assert (line["why"], line["uid"], line["reward"]) == (["best", "suspicious"], "train/0", 1.0)
    assert line["tokens"][3:] == [["4 ", 1, 0.5, 0.0], ["5 ", 1, 0.5, -0.5]]
