"""Fine-tuning and reward models on the real stack, started as a person starts them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_values import flip_a_byte

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = pytest.mark.slow


def train(folder: Path, command: str, config: str, *arguments: str) -> str:
    line = [sys.executable, "-m", "hybridrl", command, str(CONFIGS / config), *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(run: Path, kind: str) -> dict[int, dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


def test_a_fine_tuned_model_starts_a_run_that_goes_on_from_what_it_learnt(tmp_path: Path) -> None:
    train(tmp_path, "sft", "sft_arithmetic.yaml", "run.name=sft")
    summary = json.loads((tmp_path / "runs/sft/summary.json").read_text())
    assert summary["heldout_after"] < 0.1 < 2.0 < summary["heldout_before"]
    few = ("run.steps=2", "run.name=after", "actor.optimizer={lr: 1.0e-6}")
    train(tmp_path, "launch", "quickstart.yaml", "model={path: runs/sft/export}", *few)
    after = json.loads((tmp_path / "runs/after/summary.json").read_text())
    assert after["heldout_before"] > 0.9
    assert after["logprob_max_abs_diff"] <= 2e-5


def test_a_resumed_fine_tuning_is_the_uninterrupted_one(tmp_path: Path) -> None:
    few = ("run.steps=6", "run.save_every=3", "run.evaluate_every=0", "actor.optimizer={lr: 1.0e-3}")
    train(tmp_path, "sft", "sft_arithmetic.yaml", *few, "run.name=whole")
    whole, cut = tmp_path / "runs/whole", tmp_path / "runs/cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/step_000006")
    train(tmp_path, "sft", "sft_arithmetic.yaml", *few, "run.name=cut", "--resume")
    for step in (4, 5, 6):
        for name in ("train/loss", "train/grad_norm"):
            assert metrics(cut, "step")[step][name] == metrics(whole, "step")[step][name]


def test_a_fine_tuning_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    few = ("run.save_every=2", "run.evaluate_every=0", "run.name=sft", "run.export=false")
    few += ("actor.optimizer={lr: 1.0e-3}",)
    train(tmp_path, "sft", "sft_arithmetic.yaml", *few, "run.steps=4")
    run = tmp_path / "runs/sft"
    before = metrics(run, "step")[4]["train/loss"]
    flip_a_byte(run / "checkpoints/step_000004/policy.00000.safetensors")
    out = train(tmp_path, "sft", "sft_arithmetic.yaml", *few, "run.steps=6", "--resume")
    assert "passed over, step 2 is taken instead" in " ".join(out.split())
    assert metrics(run, "step")[4]["train/loss"] == before
    kept = {"step_000004", "step_000006", "step_000004.damaged"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept


def test_a_reward_model_prefers_the_right_answer(tmp_path: Path) -> None:
    train(tmp_path, "rm", "rm_arithmetic.yaml", "run.name=rm")
    looks = metrics(tmp_path / "runs/rm", "evaluation")
    assert looks[0]["val/accuracy"] < 0.7 and looks[150]["val/accuracy"] > 0.9


@pytest.mark.parametrize("command", ["sft", "rm"])
def test_a_run_without_held_out_examples_trains_and_looks_at_none(tmp_path: Path, command: str) -> None:
    few = ("run.steps=2", "data.heldout=null", "actor.optimizer.warmup_steps=0")
    train(tmp_path, command, f"{command}_arithmetic.yaml", "run.name=alone", *few)
    assert set(metrics(tmp_path / "runs/alone", "step")) == {1, 2}
    assert not metrics(tmp_path / "runs/alone", "evaluation")
