"""Runs in which critic and reference have ranks of their own, on the real stack."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
PPO = "algorithm={preset: ppo, samples_per_prompt: 16, entropy_coefficient: 0.05}"
GRPO = "algorithm={preset: grpo, samples_per_prompt: 16, entropy_coefficient: 0.05, kl: {coefficient: 0.001}}"
CRITIC = "critic={parallel: {pp: 2}, optimizer: {lr: 1.0e-3}}"
REFERENCE = "reference.parallel={tp: 1}"

pytestmark = pytest.mark.slow


def launch(folder: Path, name: str, *arguments: str) -> Path:
    """A run to its end, on an actor of TP2; its folder."""
    command = [sys.executable, "-m", "hybridrl", "launch", str(QUICKSTART), f"run.name={name}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name


def steps(run: Path) -> dict[int, dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == "step"}


@pytest.mark.parametrize("roles", [(PPO, CRITIC), (GRPO, REFERENCE)], ids=["critic", "reference"])
def test_the_task_is_learnt(tmp_path: Path, roles: tuple[str, str]) -> None:
    run = launch(
        tmp_path, "learns", *roles, "algorithm.loss={name: ppo_clip, clip_high: 0.5}", "run.steps=40"
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout_after"] > summary["heldout_before"] + 0.3
    assert summary["swap_checksums_ok"] is True


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    arguments = (PPO, "algorithm.kl={coefficient: 0.001, in: reward}", CRITIC, REFERENCE, "actor.offload=all")
    few = ("batch={prompts_per_step: 8, minibatch_prompts: 4}", "run.steps=3", "run.save_every=2")
    few += ("actor.optimizer={lr: 1.0e-3}",)
    whole = launch(tmp_path, "whole", *arguments, *few)
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    for path in (cut / "export", cut / "checkpoints/step_000003", cut / "checkpoints/critic/step_000003"):
        shutil.rmtree(path)
    launch(tmp_path, "cut", *arguments, *few, "--resume")
    one, other = steps(whole)[3], steps(cut)[3]
    for name in ("actor/loss", "actor/grad_norm", "critic/vf_loss", "critic/grad_norm", "critic/values/mean"):
        assert one[name] == other[name], name
