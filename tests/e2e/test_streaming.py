"""Streaming runs on the real stack: they learn, and a kill at any instant loses no group and repeats none."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from trained_groups import done

CONFIGS = Path(__file__).parents[2] / "configs"
KILLS = 10

CONFIG = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {"train": {"path": "train.jsonl"}, "chat_template": "none"},
    "reward": "exact_match",
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4, "correction": ["token_is"]},
    "batch": {"prompts_per_step": 8, "max_lag": 2, "order": "finished"},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 32, "swap": "in_flight"},
    "run": {"name": "killed", "steps": 60, "save_every": 1, "keep_checkpoints": 100, "evaluate_every": 0},
}


def launch(folder: Path, config: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hybridrl", "launch", config, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_the_asynchronous_quickstart_learns(tmp_path: Path) -> None:
    process = launch(tmp_path, str(CONFIGS / "quickstart_async.yaml"))
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    summary = json.loads((tmp_path / "runs" / "quickstart_async" / "summary.json").read_text())
    assert summary["heldout_after"] >= 0.9
    assert sum(summary["goodput"].values()) == pytest.approx(1)
    tokens = summary["rollout_tokens"]
    settled = ("with_gradient", "no_gradient", "stale", "flat", "aborted", "in_flight")
    assert tokens["sampled"] == sum(tokens[name] for name in settled)


def steps_done(run: Path) -> int:
    return len(list((run / "checkpoints").glob("step_[0-9]*[0-9]")))


@pytest.mark.slow
def test_kills_at_random_instants_lose_no_group_and_repeat_none(tmp_path: Path) -> None:
    sums = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, sums)))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    run, draws, again = tmp_path / "runs" / "killed", random.Random(14), ()
    for _ in range(KILLS):
        process, before = launch(tmp_path, "run.yaml", *again), steps_done(run)
        deadline = time.monotonic() + 300
        while steps_done(run) <= before:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.02)
        time.sleep(draws.uniform(0, 1.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        again = ("--resume",)
    process = launch(tmp_path, "run.yaml", *again, f"run.steps={steps_done(run) + 3}")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    checkpoints = sorted((run / "checkpoints").glob("step_[0-9]*[0-9]"))
    trained = [set(), *map(done, checkpoints)]
    for earlier, later in zip(trained, trained[1:], strict=False):
        assert earlier < later and len(later - earlier) == 8
