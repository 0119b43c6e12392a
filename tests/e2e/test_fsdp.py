"""Runs on FSDP2 on the real stack: what is learnt, what a resume repeats, and which roles train."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
FSDP = "actor={backend: fsdp, parallel: {dp: 2}, optimizer: {lr: 1.0e-3, schedule: linear, warmup_steps: 10}}"
UNTABLED = "model={path: runs/models/olmo2, make: 'hybridrl.models.tiny:olmo2_arithmetic'}"

pytestmark = pytest.mark.slow


def hybridrl(folder: Path, command: str, *arguments: str) -> str:
    line = [sys.executable, "-m", "hybridrl", command, *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch(folder: Path, name: str, *arguments: str, config: str = "quickstart_fsdp") -> Path:
    hybridrl(folder, "launch", str(CONFIGS / f"{config}.yaml"), f"run.name={name}", *arguments)
    return folder / "runs" / name


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def metrics(run: Path, kind: str = "step") -> dict[int, dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


def test_the_quickstart_learns_and_the_first_ratio_is_one(tmp_path: Path) -> None:
    found = summary(launch(tmp_path, "learns"))
    assert found["heldout_before"] < 0.1 and found["heldout_after"] >= 0.9
    assert found["first_ratio_max_abs_err"] == 0.0
    assert found["logprob_max_abs_diff"] <= 2e-5 and found["swap_checksums_ok"] is True


def test_a_model_without_a_table_learns_through_the_engines_loader(tmp_path: Path) -> None:
    run = launch(tmp_path, "olmo", UNTABLED, "rollout.weight_path=engine_api", "run.save_every=40")
    found = summary(run)
    assert found["heldout_before"] < 0.1 and found["heldout_after"] >= 0.9
    assert found["first_ratio_max_abs_err"] == 0.0 and found["logprob_max_abs_diff"] <= 2e-5
    out = hybridrl(tmp_path, "export", str(run), "--to", "exported", "--verify")
    assert "export" in out and (tmp_path / "exported/model.safetensors").is_file()


def test_a_model_without_a_table_is_tuned_and_then_trained(tmp_path: Path) -> None:
    hybridrl(tmp_path, "sft", str(CONFIGS / "sft_arithmetic.yaml"), UNTABLED, FSDP, "run.name=sft")
    assert summary(tmp_path / "runs/sft")["heldout_after"] < 0.1
    few = ("run.steps=2", "actor.optimizer={lr: 1.0e-6}")
    after = summary(launch(tmp_path, "after", "model={path: runs/sft/export}", *few))
    assert after["heldout_before"] > 0.9 and after["logprob_max_abs_diff"] <= 2e-5


def test_a_reward_model_without_a_table_prefers_the_right_answer(tmp_path: Path) -> None:
    hybridrl(tmp_path, "rm", str(CONFIGS / "rm_arithmetic.yaml"), UNTABLED, FSDP, "run.name=rm")
    looks = metrics(tmp_path / "runs/rm", "evaluation")
    assert looks[0]["val/accuracy"] < 0.7 and looks[150]["val/accuracy"] > 0.9


PPO = ("algorithm={preset: ppo, samples_per_prompt: 16, entropy_coefficient: 0.05}",)
PPO += ("algorithm.loss={name: ppo_clip, clip_high: 0.5}", "critic.optimizer={lr: 1.0e-3}")
KL = "algorithm={preset: grpo, samples_per_prompt: 16, entropy_coefficient: 0.05, kl: {coefficient: 0.001}}"
PRIME = "algorithm={preset: prime, samples_per_prompt: 16, entropy_coefficient: 0.05}"
ROLES = {
    "critic": PPO,
    "critic on dedicated ranks": (*PPO, "critic.parallel={dp: 1}"),
    "reference on dedicated ranks": (KL, "algorithm.loss.clip_high=0.5", "reference.parallel={dp: 1}"),
    "process model": (PRIME, "algorithm.process_model.optimizer={lr: 1.0e-4}"),
}


@pytest.mark.parametrize("role", ROLES)
def test_every_role_trains_on_fsdp(tmp_path: Path, role: str) -> None:
    found = summary(launch(tmp_path, "roles", *ROLES[role], "run.steps=40"))
    assert found["heldout_after"] > found["heldout_before"] + 0.3
    assert found["swap_checksums_ok"] is True and found["first_ratio_max_abs_err"] == 0.0


def test_a_reward_model_scores_on_fsdp(tmp_path: Path) -> None:
    hybridrl(tmp_path, "rm", str(CONFIGS / "rm_arithmetic.yaml"), FSDP, "run.name=rm")
    judge = "reward_model={path: runs/rm/export, weight: 0.5, parallel: {dp: 1}}"
    run = launch(tmp_path, "judged", judge, "run.steps=4", "actor.optimizer={lr: 1.0e-3}")
    assert all(0.0 != one["reward_model/score/mean"] for one in metrics(run).values())


FEW = ("batch={prompts_per_step: 8, minibatch_prompts: 4}", "run.steps=3", "run.save_every=2")
FEW += ("actor.optimizer={lr: 1.0e-3}",)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = launch(tmp_path, "whole", *PPO, *FEW, "actor.offload=all")
    again = whole.with_name("again")
    shutil.copytree(whole, again)
    for path in (again / "export", again / "checkpoints/step_000003"):
        shutil.rmtree(path)
    launch(tmp_path, "again", *PPO, *FEW, "actor.offload=all", "--resume")
    one, other = metrics(whole)[3], metrics(again)[3]
    for name in ("actor/loss", "actor/grad_norm", "critic/vf_loss", "critic/grad_norm", "critic/values/mean"):
        assert one[name] == other[name], name


def test_a_run_changes_its_backend_at_a_resume(tmp_path: Path) -> None:
    """Two steps on FSDP and one on Megatron's tensor parallelism are three steps on either."""
    whole = launch(tmp_path, "whole", *FEW)
    other = whole.with_name("other")
    shutil.copytree(whole, other)
    for path in (other / "export", other / "checkpoints/step_000003"):
        shutil.rmtree(path)
    launch(tmp_path, "other", *FEW, "actor.backend=megatron", "actor.parallel={tp: 2, dp: 1}", "--resume")
    one, moved = metrics(whole)[3], metrics(other)[3]
    for name in ("actor/loss", "actor/grad_norm"):
        assert moved[name] == pytest.approx(one[name], rel=1e-4), name
