"""Evaluation of runs and models, and conversations with them, with the real engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

SET = "heldout.jsonl"
CONFIG = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {"train": "train.jsonl", "heldout": SET, "chat_template": "none"},
    "reward": "exact_match",
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4, "entropy_coefficient": 0.01},
    "batch": {"prompts_per_step": 8},
    "actor": {"optimizer": {"lr": 1.0e-3}},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 4},
    "evaluate": {"samples_per_prompt": 32, "temperature": 1.0},
    "run": {"name": "a", "steps": 4, "save_every": 2, "evaluate_every": 2, "samples_kept": 20},
}
ROWS = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a run of four steps."""
    path = tmp_path_factory.mktemp("project")
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS[20:])))
    (path / SET).write_text("\n".join(map(json.dumps, ROWS[:20])))
    (path / "few.jsonl").write_text("\n".join(map(json.dumps, ROWS[:5])))
    (path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    hybridrl(path, "launch", "run.yaml")
    return path


def hybridrl(folder: Path, *words: str, said: str = "", code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", *words],
        cwd=folder,
        input=said,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, " ".join(done.stderr.split())


def heldout(folder: Path, step: int) -> dict:
    """The evaluation of the run after a step."""
    records = map(json.loads, (folder / "runs" / "a" / "metrics.jsonl").read_text().splitlines())
    return next(r for r in records if r["kind"] == "evaluation" and r["step"] == step)


@pytest.mark.parametrize(("step", "options"), [(4, ()), (2, ("--step", "2"))])
def test_sampled_evaluations_of_a_run_are_repeated(folder: Path, step: int, options: tuple[str, ...]) -> None:
    found = json.loads(hybridrl(folder, "eval", "runs/a", "--json", *options)[0])
    (one,) = found["sets"]
    (source,) = one["sources"]
    last = heldout(folder, step)
    assert found["step"] == step and {name: last[name] for name in one["metrics"]} == one["metrics"]
    estimates = source["estimates"]
    assert estimates["mean@32"]["value"] == last["val-core/heldout/reward/mean_at_32"] > 0
    assert estimates["pass@32"]["value"] > estimates["pass@1"]["value"]
    assert estimates["mean@32"]["low"] < estimates["mean@32"]["value"] < estimates["mean@32"]["high"]
    assert not list((folder / "runs" / "a").glob(".weights-*"))


def test_several_sets_are_kept_with_the_run_and_its_mlflow_run(folder: Path) -> None:
    told, _ = hybridrl(folder, "eval", "runs/a", "--data", SET, "--data", "few.jsonl", "--samples", "2")
    assert "few.jsonl" in told and "pass@2" in told and "and the MLflow run" in told
    newest = sorted((folder / "runs" / "a" / "evaluations").glob("*.json"))[-1]
    kept = {one["name"]: one for one in json.loads(newest.read_text())["sets"]}
    assert kept.keys() == {SET, "few.jsonl"}
    assert kept["few.jsonl"]["sources"][0]["answers"] == 10 and kept["few.jsonl"]["examples"]
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    run = client.get_run((folder / "runs" / "a" / "mlflow_run_id").read_text().strip())
    value = kept["few.jsonl"]["sources"][0]["estimates"]["mean@2"]["value"]
    assert run.data.metrics["eval/few.jsonl/mean_at_2"] == value and run.info.status == "FINISHED"


def test_a_model_is_evaluated_with_the_data_of_a_config_or_of_the_command_line(folder: Path) -> None:
    exported = str(folder / "runs" / "a" / "export")
    greedy = ("evaluate.temperature=0", "--samples", "1", "--json")
    with_config, _ = hybridrl(folder, "eval", exported, "--config", "run.yaml", *greedy)
    short = ("rollout.max_prompt_tokens=16", "rollout.max_response_tokens=4", "data.chat_template=none")
    alone, _ = hybridrl(folder, "eval", exported, "--data", SET, "reward=exact_match", *short, *greedy)
    one, other = (json.loads(text)["sets"][0]["metrics"] for text in (with_config, alone))
    assert one == other and one


def test_what_cannot_be_evaluated_is_refused_before_an_engine_starts(folder: Path) -> None:
    def refused(*words: str) -> str:
        return hybridrl(folder, "eval", *words, code=2)[1]

    assert "pass@64 needs 64 answers to a prompt, evaluate.samples_per_prompt = 32" in refused(
        "runs/a", "--pass", "64"
    )
    assert "run.yaml has no held-out set" in refused("run.yaml", "data.heldout=null")
    assert "reward = none judges no answer" in refused("model", "--data", SET)
    assert "there is no config, run or model runs/b: there is runs/a" in refused("runs/b")
    assert "greedy answers are all" in refused("runs/a", "evaluate.temperature=0")
    assert "holds no whole checkpoint of step 3" in refused("runs/a", "--step", "3")
    assert "there is heldout.jsonl" in refused("runs/a", "--data", "helout.jsonl")


def test_a_conversation_with_a_run_is_with_its_policy(folder: Path) -> None:
    """Greedy answers through the pipe are those of the greedy evaluation."""
    said = "".join(f"{row['prompt']}\n/reset\n" for row in ROWS[:20])
    answers, _ = hybridrl(folder, "chat", "runs/a", "--temperature", "0", said=said)
    greedy = ("evaluate.temperature=0", "--samples", "1", "--json")
    (found,) = json.loads(hybridrl(folder, "eval", "runs/a", *greedy)[0])["sets"]
    assert [one["prompt"] for one in found["examples"]] == [row["prompt"] for row in ROWS[:20]]
    assert answers.splitlines() == [one["answer"] for one in found["examples"]]


def test_commands_of_a_conversation(folder: Path) -> None:
    words = (
        "/help",
        "/temperature hot",
        "/temperature 0",
        "3+4=",
        "/tokens 1",
        "3+4=",
        "/system Be brief.",
        "/foo",
    )
    said = "\n".join([*words, "/quit", "1+1="])
    answers, told = hybridrl(folder, "chat", "runs/a", said=said)
    assert len(answers.splitlines()) == 2
    for text in (
        "/reset forget the conversation",
        "temperature 0",
        "answers of up to 1 tokens",
        "no command /foo",
    ):
        assert text in told
    _, told = hybridrl(folder, "chat", "runs/a", "--system", "Be brief.", code=2)
    assert "a system prompt needs a chat template, and data.chat_template is none" in told
