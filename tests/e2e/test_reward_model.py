"""Runs that a reward model judges, on the real stack: one is trained, then scores what the policy answers."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    "algorithm.samples_per_prompt=4",
    "batch={prompts_per_step: 4}",
    "run.steps=3",
    "run.sample_every=1",
    "run.samples_kept=16",
    "run.save_every=2",
    "actor.optimizer={lr: 1.0e-3}",
)
WEIGHT = 0.5
ALONE = ("reward=none", "actor.offload=all", "reward_model={path: runs/rm/export, weight: 0.5}")
APART = "reward_model={path: runs/rm/export, weight: 0.5, parallel: {pp: 2}, microbatch_tokens: 64}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a reward model in runs/rm/export."""
    folder = tmp_path_factory.mktemp("judged")
    run(folder, "rm", "rm_arithmetic.yaml", "run.name=rm", "run.steps=30", "run.evaluate_every=0")
    return folder


@pytest.fixture(scope="module")
def judge(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    export = folder / "runs/rm/export"
    model: Any = AutoModelForSequenceClassification.from_pretrained(export, dtype=torch.float32)
    model.config.pad_token_id = None
    return model


def run(folder: Path, command: str, config: str, *arguments: str) -> str:
    line = [sys.executable, "-m", "hybridrl", command, str(CONFIGS / config), *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch(folder: Path, name: str, *arguments: str) -> Path:
    run(folder, "launch", "quickstart.yaml", f"run.name={name}", *SMALL, *arguments)
    return folder / "runs" / name


def metrics(folder: Path, kind: str) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


def samples(folder: Path, step: int) -> Iterator[tuple[str, str, float, int, bool]]:
    """Prompt, answer, reward, tokens of the answer, whether an end token is among them."""
    text = (folder / "samples.txt").read_text()
    for block in re.split(r"(?m)^(?=step \d)", text):
        head = re.match(r"step (\d+) .*reward (-?[\d.]+) .* (stop|cut) after (\d+) tokens", block)
        if head and int(head[1]) == step:
            prompt, answer = (re.search(rf"{word} \| ?(.*)", block) for word in ("prompt", "answer"))
            assert prompt and answer
            yield prompt[1], answer[1], float(head[2]), int(head[4]), head[3] == "stop"


def right(prompt: str, answer: str) -> float:
    """By the rule of the task: "7+5=" is "2"."""
    return float(answer == str(sum(map(int, prompt.rstrip("=").split("+"))))[-1])


def score(judge: Any, tokenizer: Any, sample: tuple[str, str, float, int, bool], rule: float) -> float:
    """Of an answer whose special tokens its text does not show: of all that it may be, the rewarded one.

    Args:
        rule: what it got beside the score.
    """
    prompt, answer, reward, num_tokens, stopped = sample
    shown = tokenizer.encode(answer, add_special_tokens=False)
    end = [tokenizer.eos_token_id] * stopped
    hidden = [i for i in tokenizer.all_special_ids if not (stopped and i == tokenizer.eos_token_id)]
    lacking = num_tokens - len(shown) - len(end)
    found = []
    for places in itertools.combinations(range(num_tokens - len(end)), lacking):
        for special in itertools.product(hidden, repeat=lacking):
            rest, put = iter(shown), dict(zip(places, special, strict=True))
            body = [put[i] if i in put else next(rest) for i in range(num_tokens - len(end))]
            ids = tokenizer.encode(prompt, add_special_tokens=False) + body + end
            with torch.no_grad():
                found.append(float(judge(torch.tensor([ids])).logits[0, 0]))
    best = min(found, key=lambda one: abs(rule + WEIGHT * one - reward))
    assert abs(rule + WEIGHT * best - reward) < 6e-4, (sample, found)
    return best


def compare_with_transformers(judge: Any, folder: Path, run_folder: Path, *, ruled: bool) -> None:
    """Of every step: the mean score, and each reward as far as it is printed."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "runs/rm/export")
    for step, told in metrics(run_folder, "step").items():
        kept = list(samples(run_folder, step))
        rules = [right(prompt, answer) if ruled else 0.0 for prompt, answer, *_ in kept]
        found = [score(judge, tokenizer, *pair) for pair in zip(kept, rules, strict=True)]
        assert len(found) == 16
        mean, rule = sum(found) / len(found), sum(rules) / len(rules)
        assert told["reward_model/score/mean"] == pytest.approx(mean, abs=1e-5)
        assert told["reward_model/score/max"] == pytest.approx(max(found), abs=1e-5)
        assert told["critic/score/mean"] == pytest.approx(rule + WEIGHT * mean, abs=1e-5)
        assert told.get("reward/rule/mean", 0.0) == pytest.approx(rule)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """A run that no rule judges; the model is on the actor's ranks, and away while engines generate."""
    return launch(folder, "alone", *ALONE)


def test_scores_of_a_run_are_those_of_the_exported_model(folder: Path, judge: Any, alone: Path) -> None:
    compare_with_transformers(judge, folder, alone, ruled=False)
    heldout = metrics(alone, "evaluation")[0]["val-core/last_digit/reward/mean_at_1"]
    assert heldout < 0  # judged by the model: no rule takes points off


def test_a_rule_and_a_model_on_ranks_of_its_own_are_added(folder: Path, judge: Any) -> None:
    both = launch(folder, "both", APART, "batch.max_lag=1")
    compare_with_transformers(judge, folder, both, ruled=True)
    heldout = metrics(both, "evaluation")[0]["val-core/last_digit/reward/mean_at_1"]
    assert 0 <= heldout < 0.5  # of the rule alone: a share of right answers


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, alone: Path) -> None:
    cut = alone.with_name("cut")
    shutil.copytree(alone, cut)
    for path in (cut / "export", cut / "checkpoints/step_000003"):
        shutil.rmtree(path)
    launch(folder, "cut", *ALONE, "--resume")
    one, other = metrics(alone, "step")[3], metrics(cut, "step")[3]
    for name in ("reward_model/score/mean", "critic/score/mean", "actor/loss", "actor/grad_norm"):
        assert one[name] == other[name], name
