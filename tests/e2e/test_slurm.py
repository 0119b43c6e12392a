"""A run on a real Slurm of this machine: told to stop, pre-empted, requeued, and in the end the same."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_local
import yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_local.absent()), reason=slurm_local.absent()),
]

STEPS = 60

CONFIG = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {
        "train": {"task": "last_digit", "part": "train"},
        "heldout": {"path": "heldout.jsonl"},
        "chat_template": "none",
    },
    "reward": "exact_match",
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4},
    "batch": {"prompts_per_step": 8, "minibatch_prompts": 4},
    "actor": {"microbatch_tokens": 128, "optimizer": {"lr": 1.0e-3}},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 4},
    "run": {"name": "whole", "steps": STEPS, "save_every": 10, "evaluate_every": 20},
    "observe": {"sinks": []},
    "cluster": {
        "slurm": {"time": "30:00", "exclusive": False, "drain_s": 120, "setup": ["export OMP_NUM_THREADS=1"]}
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project")
    rows = [{"prompt": f"{a}+1=", "answer": str((a + 1) % 10)} for a in range(10)]
    (path / "heldout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_local.Slurm]:
    with slurm_local.running(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


def launch(folder: Path, environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hybridrl", "launch", "run.yaml", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout + done.stderr


def records(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learnt(run: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What every step and evaluation measured, but for times and memory."""
    free = ("timing", "time", "wall_s", "perf/", "sync/time_s", "goodput/")
    return {
        (record["kind"], record["step"]): {k: v for k, v in record.items() if not k.startswith(free)}
        for record in records(run)
    }


def await_job(slurm: slurm_local.Slurm, run: Path, condition: Callable[[str, int], bool]) -> str:
    """Wait until it holds of what Slurm says of job 1 and of the last step that the run recorded."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        said = slurm.ask("scontrol", "show", "job", "--oneliner", "1")
        step = max((record["step"] for record in records(run) if record["kind"] == "step"), default=0)
        if condition(said, step):
            return said
        assert not any(f"JobState={end}" in said for end in ("FAILED", "TIMEOUT", "CANCELLED")), output(run)
        time.sleep(0.1)
    raise AssertionError(f"{said}\n{output(run)}")


def output(run: Path) -> str:
    return (run / "slurm" / "1.out").read_text()


def test_a_job_that_is_stopped_and_preempted_ends_as_the_uninterrupted_run(
    folder: Path, slurm: slurm_local.Slurm
) -> None:
    whole, job = folder / "runs" / "whole", folder / "runs" / "job"
    code, said = launch(folder, dict(os.environ))
    assert code == 0, said

    code, said = launch(folder, slurm.environment, "run.name=job", "--on", "slurm")
    assert code == 0 and "submitted job 1" in said
    code, said = launch(folder, slurm.environment, "run.name=job", "--on", "slurm")
    assert code == 2 and "belongs to job 1" in said

    await_job(slurm, job, lambda said, step: step >= 3)
    slurm.ask("scancel", "--batch", "--signal=USR1", "1")  # what Slurm does before the end of a job's time
    await_job(slurm, job, lambda said, step: "Restarts=1" in said)
    stopped = json.loads((job / "summary.json").read_text())
    assert stopped["stopped_by"] == "SIGUSR1" and 3 <= stopped["steps"] < STEPS
    assert (job / "checkpoints" / f"step_{stopped['steps']:06d}").is_dir()

    saved = next(step for step in range(10, STEPS, 10) if step > stopped["steps"])
    await_job(slurm, job, lambda said, step: "Restarts=1" in said and step > saved + 1)
    slurm.ask("scontrol", "requeue", "1")  # a pre-emption without warning: what was not saved is done again
    await_job(slurm, job, lambda said, step: "JobState=COMPLETED" in said)

    said = output(job)
    assert f"stopped at step {stopped['steps']} by SIGUSR1, --resume continues" in said
    assert "stopped; back into the queue" in said
    assert learnt(job) == learnt(whole)
    exported = "export/model.safetensors"
    assert (job / exported).read_bytes() == (whole / exported).read_bytes()
