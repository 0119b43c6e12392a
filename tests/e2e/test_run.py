"""Whole runs on the real stack: Ray, Megatron-core, SGLang, started as a person starts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoint_values import flip_a_byte
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridrl.bench.workloads import e2e

CONFIG = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {
        "train": {"path": "train.jsonl"},
        "heldout": {"path": "heldout.jsonl"},
        "chat_template": "none",
    },
    "reward": "exact_match",
    # The entropy bonus: weights move although hardly an answer is right so early.
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4, "entropy_coefficient": 0.01},
    "batch": {"prompts_per_step": 8, "minibatch_prompts": 4},
    "actor": {"parallel": {"tp": 2}, "microbatch_tokens": 128, "optimizer": {"lr": 1.0e-3}},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 4},
    "run": {
        "name": "whole",
        "steps": 4,
        "save_every": 2,
        "evaluate_every": 2,
        "sample_every": 1,
        "export_every": 2,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a config and data; each run in it is named."""
    path = tmp_path_factory.mktemp("project")
    sums = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, sums[20:])))
    (path / "heldout.jsonl").write_text("\n".join(map(json.dumps, sums[:20])))
    (path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    (path / "late_reward.py").write_text(LATE_REWARD)
    return path


LATE_REWARD = """
import time
from pathlib import Path

def raising(answer, row, *, answer_field):
    if Path("stop").exists():
        raise KeyError("colour")
    return 0.0

def hanging(answer, row, *, answer_field):
    while Path("stop").exists():
        time.sleep(0.1)
    return 0.0
"""


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hybridrl", "launch", "run.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=400)
    return out


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_values(run: Path, name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in lines(run) if r["kind"] == "step"}


def mlflow_status(run: Path) -> str:
    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    return client.get_run((run / "mlflow_run_id").read_text().strip()).info.status


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run."""
    process = launch(folder)
    out = finish(process)
    assert process.returncode == 0, out
    return folder / "runs" / "whole"


def test_a_benchmark_reads_the_steps_of_a_run(whole: Path) -> None:
    found = e2e.samples(CONFIG, e2e.steps_of(whole))
    phases = {f"{name}_s" for name in e2e.PHASES}
    assert phases <= found.keys() <= e2e.BENCH.metrics.keys()
    for i, step_s in enumerate(found["step_s"]):
        assert sum(found[name][i] for name in phases) <= step_s * 1.01
        assert 0 < found["response_tokens_s"][i] < found["tokens_s"][i] and found["gen_s"][i] > 0
    assert len(found["step_s"]) == 4 and len(found["driver_memory_growth_kb"]) == 1


def test_trainer_and_engine_agree_and_the_first_ratio_is_one(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["first_ratio_max_abs_err"] == 0.0
    assert 0.0 < summary["logprob_max_abs_diff"] <= 2e-5
    assert summary["swap_checksums_ok"] is True
    assert summary["heldout_before"] is not None and summary["train_wall_s"] > 0


def test_a_run_leaves_its_files(whole: Path) -> None:
    for name in ("resolved.yaml", "metrics.jsonl", "samples.txt", "reward.png", "summary.json"):
        assert (whole / name).stat().st_size > 0
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_000002", "step_000004"]
    assert (whole.parent / "mlflow.db").exists()


def test_the_exported_model_is_the_policy_that_the_engine_sampled_from(whole: Path, folder: Path) -> None:
    """Plain transformers gives greedy answers from the export; they are those of the last evaluation."""
    model = AutoModelForCausalLM.from_pretrained(whole / "export", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(whole / "export")
    right = []
    for line in (folder / "heldout.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        answer = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        right.append(text.strip() == row["answer"])
    assert np.mean(right) == pytest.approx(json.loads((whole / "summary.json").read_text())["heldout_after"])


def test_a_checkpoint_becomes_the_very_model_that_the_trainer_exports(whole: Path, folder: Path) -> None:
    assert sorted(path.name for path in (whole / "exports").iterdir()) == ["step_000002", "step_000004"]
    again = hybridrl(folder, "export", "runs/whole", "--to", "again", "--verify")
    assert again.returncode == 0, again.stdout
    assert "the policy of step 4" in again.stdout and "verified" in again.stdout
    trained = (whole / "export" / "model.safetensors").read_bytes()
    for made in (whole / "exports" / "step_000004", folder / "again"):
        assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in (whole / "export").iterdir())
        assert (made / "model.safetensors").read_bytes() == trained
    assert (whole / "exports" / "step_000002" / "model.safetensors").read_bytes() != trained
    missing = hybridrl(folder, "export", "runs/whole", "--step", "3", "--to", "never")
    assert missing.returncode == 2
    assert "no whole checkpoint of step 3: there are those of steps 2, 4" in missing.stdout


def test_an_evaluation_of_a_run_repeats_its_last_one(whole: Path, folder: Path) -> None:
    done = hybridrl(folder, "eval", "runs/whole")
    assert done.returncode == 0, done.stdout
    (found,) = json.loads((whole / "evaluations" / "0001.json").read_text())["sets"]
    last = [record for record in lines(whole) if record["kind"] == "evaluation"][-1]
    assert found["metrics"] and {name: last[name] for name in found["metrics"]} == found["metrics"]


def hybridrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hybridrl", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )


def test_a_finished_run_is_not_overwritten(whole: Path, folder: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    process = launch(folder)
    out = finish(process)
    assert process.returncode == 2
    assert "already holds a run at step 4: --resume continues it, run.name=... starts another" in out
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_run_resumed_from_an_earlier_step_is_the_same_run(whole: Path, folder: Path) -> None:
    earlier = shutil.copytree(whole, folder / "runs" / "earlier")
    for name in ("export", "exports", "checkpoints/step_000004"):
        shutil.rmtree(earlier / name)
    process = launch(folder, "run.name=earlier", "--resume")
    out = finish(process)
    assert process.returncode == 0, out
    assert (earlier / "checkpoints" / "step_000004").exists()
    assert_same_run(earlier, whole)


def assert_same_run(found: Path, whole: Path) -> None:
    """Every step of a run and its exported weights are those of the uninterrupted one, bit for bit."""
    for name in ("critic/score/mean", "actor/grad_norm", "actor/loss", "actor/entropy", "actor/lr"):
        assert step_values(found, name) == step_values(whole, name)
    exported = "export/model.safetensors"
    assert (found / exported).read_bytes() == (whole / exported).read_bytes()


@pytest.mark.slow
def test_a_run_killed_after_a_checkpoint_resumes_bit_for_bit(whole: Path, folder: Path) -> None:
    process = launch(folder, "run.name=killed")
    killed = folder / "runs" / "killed"
    deadline = time.monotonic() + 300
    while not (killed / "checkpoints" / "step_000002").exists():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process = launch(folder, "run.name=killed", "--resume")
    out = finish(process)
    assert process.returncode == 0, out
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_neither_resumed_nor_exported(whole: Path, folder: Path) -> None:
    spoilt = shutil.copytree(whole, folder / "runs" / "spoilt")
    shutil.rmtree(spoilt / "export")
    file = spoilt / "checkpoints" / "step_000004" / "policy.00001.safetensors"
    flip_a_byte(file)
    named = hybridrl(folder, "export", "runs/spoilt", "--step", "4", "--to", "never")
    assert named.returncode == 2 and f"{file.name} is damaged" in " ".join(named.stdout.split())
    newest = hybridrl(folder, "export", "runs/spoilt", "--to", "before")
    assert newest.returncode == 0 and "the policy of step 2" in newest.stdout
    for out in (newest.stdout, finish(launch(folder, "run.name=spoilt", "--resume"))):
        assert "passed over, step 2 is taken instead" in " ".join(out.split())
    assert_same_run(spoilt, whole)
    assert (spoilt / "checkpoints" / "step_000004.damaged" / file.name).exists()


@pytest.mark.slow
def test_a_run_told_to_stop_saves_its_step_and_resumes_bit_for_bit(whole: Path, folder: Path) -> None:
    process, told = launch(folder, "run.name=told", "run.save_every=0"), folder / "runs" / "told"
    deadline = time.monotonic() + 300
    while not (told / "metrics.jsonl").exists() or not step_values(told, "actor/loss"):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    out = finish(process)
    stopped = json.loads((told / "summary.json").read_text())
    assert process.returncode == 75 and stopped["stopped_by"] == "SIGTERM", out
    assert f"stopped at step {stopped['steps']} by SIGTERM, --resume continues" in out
    assert [path.name for path in (told / "checkpoints").iterdir()] == [f"step_{stopped['steps']:06d}"]
    assert mlflow_status(told) == "KILLED"
    process = launch(folder, "run.name=told", "run.save_every=0", "--resume")
    out = finish(process)
    assert process.returncode == 0 and mlflow_status(told) == "FINISHED", out
    assert_same_run(told, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "exit_code"), [("false", 130), ("true", 75)])
def test_ctrl_c_leaves_curve_and_summary_and_saves_if_it_is_told_to(
    folder: Path, saves: str, exit_code: int
) -> None:
    name = f"interrupted_{saves}"
    keys = (f"run.name={name}", f"run.save_on_interrupt={saves}", "run.steps=500", "run.save_every=0")
    process, run = launch(folder, *keys, "run.export_every=0"), folder / "runs" / name
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or not step_values(run, "actor/loss"):
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out = finish(process)
    summary = json.loads((run / "summary.json").read_text())
    assert process.returncode == exit_code and summary["stopped_by"] == "SIGINT", out
    assert (run / "reward.png").stat().st_size > 0
    saved = [path.name for path in (run / "checkpoints").glob("step_*")]
    assert saved == ([f"step_{summary['steps']:06d}"] if saves == "true" else [])
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("function", "exit_code", "message"),
    [
        ("raising", 2, "KeyError"),
        pytest.param("hanging", 3, "did not return", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_fails_during_the_run_ends_it_with_its_name(
    folder: Path, function: str, exit_code: int, message: str
) -> None:
    (folder / "stop").unlink(missing_ok=True)
    name = f"run.name={function}"
    process = launch(
        folder, f"reward.name=late_reward:{function}", "reward.timeout_s=2", name, "run.steps=40"
    )
    metrics = folder / "runs" / function / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or '"kind": "step"' not in metrics.read_text():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.05)
    (folder / "stop").touch()
    out = finish(process)
    assert process.returncode == exit_code, out
    assert f"late_reward:{function}" in out and message in out
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        ("actor.parallel.pp=2", "rollout.parallel.tp=2"),
        ("actor.parallel.dp=2", "rollout.num_engines=2", "batch.max_lag=1"),
    ],
)
def test_other_shapes_of_trainer_and_engines_run(folder: Path, shape: tuple[str, ...]) -> None:
    name = "-".join(shape).replace(".", "_").replace("=", "")
    process = launch(folder, *shape, "actor.parallel.tp=1", f"run.name={name}")
    out = finish(process)
    assert process.returncode == 0, out
    summary = json.loads((folder / "runs" / name / "summary.json").read_text())
    assert summary["swap_checksums_ok"] is True
    assert summary["logprob_max_abs_diff"] <= 2e-5 or "batch.max_lag=1" in shape


@pytest.mark.slow
def test_a_run_whose_weights_go_through_the_engines_loader_is_the_same_run(whole: Path, folder: Path) -> None:
    process = launch(folder, "rollout.weight_path=engine_api", "run.name=loader", "run.steps=2")
    out = finish(process)
    assert process.returncode == 0, out
    run = folder / "runs" / "loader"
    for name in ("critic/score/mean", "actor/grad_norm", "actor/loss", "training/rollout_logp_diff_max"):
        expected = step_values(whole, name)
        assert step_values(run, name) == {step: expected[step] for step in (1, 2)}
    assert set(step_values(run, "sync/in_place").values()) == {0.0}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["swap_checksums_ok"] is None
    assert "through the engine's own loader" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "metrics"),
    [
        (
            [
                "algorithm.preset=ppo",
                "algorithm.kl={coefficient: 0.01, in: reward, target: 0.1}",
                "algorithm.shaping=[{name: overlong, limit: 4, margin: 2}]",
            ],
            {"critic/vf_loss", "critic/values/mean", "actor/reward_kl_penalty_coeff"},
        ),
        (
            ["algorithm.preset=prime", "algorithm.dynamic_sampling={max_rounds: 50}"],
            {"process/loss", "rollout/kept_share"},
        ),
        (
            [
                "algorithm.preset=remax",
                "algorithm.drop_truncated=true",
                "algorithm.entropy_target=1.0",
                "algorithm.entropy_coefficient=0.01",
            ],
            {"rollout/dropped_share", "actor/entropy_coef"},
        ),
    ],
    ids=["ppo", "prime", "remax"],
)
def test_algorithms_with_more_than_a_policy_run(
    folder: Path, algorithm: list[str], metrics: set[str]
) -> None:
    name = algorithm[0].rpartition("=")[2]
    process = launch(folder, *algorithm, f"run.name={name}", "run.steps=2")
    out = finish(process)
    assert process.returncode == 0, out
    first, second = (r for r in lines(folder / "runs" / name) if r["kind"] == "step")
    assert metrics <= first.keys() & second.keys()
    summary = json.loads((folder / "runs" / name / "summary.json").read_text())
    assert summary["first_ratio_max_abs_err"] == 0.0 and summary["swap_checksums_ok"] is True
    if name == "ppo":
        assert first["critic/values/mean"] == 0.0 != second["critic/values/mean"]
        assert first["critic/score/mean"] >= first["critic/rewards/mean"]
