"""Bundles of real runs are taken again bit for bit, and say what differs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import write_project


def hybridrl(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project")
    write_project(path)
    return path


@pytest.mark.slow
def test_a_step_of_a_run_is_taken_again(folder: Path) -> None:
    code, out = hybridrl(folder, "launch", "run.yaml", "run.steps=4", "run.bundle.every=3")
    assert code == 0, out
    bundle = "runs/calm/bundles/step_000003"
    code, out = hybridrl(folder, "replay", bundle)
    assert code == 0 and "are the same, bit for bit" in out, out
    code, out = hybridrl(folder, "replay", bundle, "--layout", "tp2")
    assert code == 0 and "on tp2" in out, out
    record = json.loads((folder / bundle / "COMMITTED").read_text())
    lines = (folder / "runs/calm/metrics.jsonl").read_text().splitlines()
    step = next(r for r in map(json.loads, lines) if r["kind"] == "step" and r["step"] == 3)
    norms = [taken["grad_norm"] for taken in record["steps"]]
    assert len(norms) == 2 and step["actor/grad_norm"] == pytest.approx(sum(norms) / 2)


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_a_bundle(folder: Path) -> None:
    """Planted advantages are NaN in the memory of a rank, not in the batch: this is what differs first."""
    nan = ("--inject", "nan:trainer:0@step=2,phase=update")
    code, out = hybridrl(folder, "launch", "run.yaml", "run.steps=3", "run.name=halt", *nan)
    assert code == 1 and "hybridrl replay runs/halt/bundles/step_000002 takes it again" in out, out
    code, out = hybridrl(folder, "replay", "runs/halt/bundles/step_000002")
    assert code == 1 and "first: advantage of trajectory 0, token" in out and "nan there" in out, out


@pytest.mark.slow
def test_a_skipped_step_is_skipped_again(folder: Path) -> None:
    words = ("run.steps=3", "run.name=skip", "actor.non_finite=skip")
    nan = ("--inject", "nan:trainer:0@step=2,phase=update")
    code, out = hybridrl(folder, "launch", "run.yaml", *words, *nan)
    assert code == 0, out
    code, out = hybridrl(folder, "replay", "runs/skip/bundles/step_000002")
    assert code == 0 and "1 optimizer step of step 2 on 1 rank" in out and "bit for bit" in out, out


@pytest.mark.slow
def test_the_difference_of_trainer_and_engine_is_explained(folder: Path) -> None:
    """Older weights explain that of a streaming run; those of a synchronous one agree."""
    code, out = hybridrl(folder, "why", "runs/absent", "--mismatch")
    assert code == 2 and "run.bundle.every=N" in out, out
    streaming = ("batch.max_lag=1", "run.keep_checkpoints=9", "actor.optimizer.lr=1.0e-2")
    for name, words in (("fresh", ()), ("stale", streaming)):
        run = ("run.steps=4", f"run.name={name}", "run.bundle.every=4")
        code, out = hybridrl(folder, "launch", "run.yaml", *run, *words)
        assert code == 0, out
    means = {}
    for name in ("fresh", "stale"):
        code, out = hybridrl(folder, "why", f"runs/{name}", "--mismatch")
        assert code == 0 and "the engine less the trainer" in out, out
        means[name] = {
            cause: float(out.partition(f" {cause} ")[2].split()[0])
            for cause in (
                "stale weights",
                "tokenisation",
                "sampling mask",
                "precision",
                "packing",
                "unexplained",
            )
        }
    assert max(means["fresh"].values()) < 1e-5, means
    assert means["stale"].pop("stale weights") > 1e-3 and max(means["stale"].values()) < 1e-5, means
