"""Runs on vLLM on the real stack: what is learnt, what a resume repeats, what SGLang would have answered."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_kinds import VLLM_PYTHON, case_of

from hybridrl.observe.names import LOGP_GAP

CONFIGS = Path(__file__).parents[2] / "configs"
VLLM = ("rollout.engine=vllm", f"rollout.python={VLLM_PYTHON}")
FEW = ("batch={prompts_per_step: 8, minibatch_prompts: 4}", "actor.optimizer={lr: 1.0e-3}", "run.steps=3")
SAMPLED = "evaluate={samples_per_prompt: 8, temperature: 0.7, top_k: 4, top_p: 0.95}"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environment() -> None:
    case_of("vllm")


def launch(folder: Path, name: str, *arguments: str, config: str = "quickstart") -> tuple[Path, str]:
    """The folder of a run, and what was printed."""
    line = [sys.executable, "-m", "hybridrl", "launch", str(CONFIGS / f"{config}.yaml"), f"run.name={name}"]
    command = [*line, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name, done.stdout + done.stderr


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def metrics(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


def test_the_quickstart_learns_and_trainer_and_engine_agree_at_every_step(tmp_path: Path) -> None:
    run, _ = launch(tmp_path, "learns", f"rollout.python={VLLM_PYTHON}", config="quickstart_vllm")
    found = summary(run)
    assert found["heldout_before"] < 0.1 and found["heldout_after"] >= 0.9
    assert found["first_ratio_max_abs_err"] == 0.0 and found["swap_checksums_ok"] is True
    steps = metrics(run, "step")
    assert len(steps) == 80 and all(0.0 < step[LOGP_GAP] <= 2e-5 for step in steps.values())


REPEATED = ("actor/loss", "actor/grad_norm", "critic/score/mean", LOGP_GAP)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options = (*VLLM, *FEW, SAMPLED, "run.save_every=2", "run.evaluate_every=1")
    whole, _ = launch(tmp_path, "whole", *options)
    again = whole.with_name("again")
    shutil.copytree(whole, again)
    for path in (again / "export", again / "checkpoints/step_000003"):
        shutil.rmtree(path)
    launch(tmp_path, "again", *options, "--resume")
    one, other = metrics(whole, "step")[3], metrics(again, "step")[3]
    assert {name: one[name] for name in REPEATED} == {name: other[name] for name in REPEATED}
    assert summary(again)["heldout_after"] == summary(whole)["heldout_after"]
    weights = "export/model.safetensors"
    assert (again / weights).read_bytes() == (whole / weights).read_bytes()


def test_an_evaluation_at_a_temperature_with_top_k_is_that_of_sglang(tmp_path: Path) -> None:
    """The same seeds and weights give the same answers, to training prompts and in evaluations."""
    found = {
        name: launch(tmp_path, name, *FEW, SAMPLED, "run.evaluate_every=1", *options)[0]
        for name, options in {"sglang": (), "vllm": VLLM}.items()
    }
    one, other = (metrics(run, "evaluation") for run in found.values())
    assert one.keys() == other.keys() == {0, 1, 2, 3}
    for step, evaluation in one.items():
        scores = {name: value for name, value in evaluation.items() if name.startswith("val-core/")}
        assert scores and scores == {name: other[step][name] for name in scores}
    rewards = [
        [line["critic/score/mean"] for line in metrics(run, "step").values()] for run in found.values()
    ]
    assert rewards[0] == rewards[1]


def test_two_tensor_parallel_ranks_answer_as_one_does(tmp_path: Path) -> None:
    runs = [launch(tmp_path, f"tp{tp}", *VLLM, *FEW, f"rollout.parallel={{tp: {tp}}}")[0] for tp in (1, 2)]
    one, other = (metrics(run, "step") for run in runs)
    for step, line in one.items():
        assert line["critic/score/mean"] == other[step]["critic/score/mean"]
        assert other[step][LOGP_GAP] <= 2e-5
    assert summary(runs[1])["swap_checksums_ok"] is True
