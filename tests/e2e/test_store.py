"""A run whose machine is lost goes on from the copies of its checkpoints, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import write_project

WORDS = ("run.steps=4", "run.evaluate_every=0", "rollout.num_engines=1", "observe.sinks=[]")


def launch(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", "launch", "run.yaml", *WORDS, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, " ".join(done.stdout.split())


def steps(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["actor/loss"] for record in records if record["kind"] == "step"}


@pytest.mark.slow
def test_a_run_without_its_folder_goes_on_from_the_store(tmp_path: Path) -> None:
    write_project(tmp_path)
    calm, lost = tmp_path / "runs" / "calm", tmp_path / "runs" / "lost"
    code, out = launch(tmp_path)
    assert code == 0, out
    store = f"run.store=file://{tmp_path}/store"
    fault = (
        "--inject",
        "slow:driver@step=3,phase=generate,seconds=15",
        "--inject",
        "kill:driver@step=3,phase=swap",
    )
    code, out = launch(tmp_path, "run.name=lost", store, "run.keep_checkpoints=1", *fault)
    assert code == -9, out
    shutil.rmtree(lost)
    kept = sorted(path.name for path in (tmp_path / "store" / "lost").iterdir())
    assert kept == ["run", "step_000002"]

    code, out = launch(tmp_path, "run.name=lost", store)
    assert code == 2 and "a run of this name has checkpoints in" in out, out
    code, out = launch(tmp_path, "run.name=lost", "--resume")
    assert code == 2 and "holds no run" in out, out
    code, out = launch(tmp_path, "run.name=lost", store, "--resume")
    assert code == 0 and f"step 2 was copied from file://{tmp_path}/store/lost" in out, out
    assert steps(lost) == steps(calm)
    exported = "export/model.safetensors"
    assert (lost / exported).read_bytes() == (calm / exported).read_bytes()
    assert (tmp_path / "store" / "lost" / "step_000004" / "COMMITTED").exists()
