"""The first config that `hybridrl init` writes is one that a run accepts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hybridrl.config import strict_yaml
from hybridrl.config.load import load
from hybridrl.config.presets import PRESETS
from hybridrl.config.starter import Answers, starter
from hybridrl.errors import ConfigError
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.preflight import preflight
from hybridrl.launch.verdict import SCOPES
from hybridrl.models.tiny import qwen3_arithmetic

ANSWERS = Answers(algorithm="grpo", model="models/m", data="train.jsonl", teacher="models/t")
GYM = replace(ANSWERS, data="reasoning_gym:chain_sum", teacher=None)


def config(tmp_path: Path, answers: Answers) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(starter(answers, "first"))
    return path


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """With a model and data that are there."""
    folder = tmp_path_factory.mktemp("init")
    qwen3_arithmetic(folder / "model", 0)
    row = {"prompt": "1+1=", "answer": "2", "demonstration": "2"}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    return Answers(
        algorithm="grpo",
        model=str(folder / "model"),
        data=str(folder / "train.jsonl"),
        heldout=str(folder / "train.jsonl"),
        reward="exact_match",
    )


NO_RUN_YET = {
    "gigpo",
    "spiral",
    "hierarchical_grpo",
    "prime_rl/spiral",
    "prime_rl/hierarchical_grpo",
    "echo",
    "prime_rl/echo",
}
"""Presets that are for a run with an environment."""


@pytest.mark.parametrize("algorithm", sorted(PRESETS.keys() - NO_RUN_YET))
def test_every_preset_gives_a_config_that_passes_the_check(
    tmp_path: Path, answered: Answers, algorithm: str
) -> None:
    teacher = None
    if PRESETS[algorithm].has_teacher:
        teacher = str(shutil.copytree(answered.model, tmp_path / "teacher"))
    path = config(tmp_path, replace(answered, algorithm=algorithm, teacher=teacher))
    preflight(load(path), SCOPES["launch"], Machine(2, 64 * GIB, 64 * GIB, 8 * GIB, ()), lambda *_: None)


@pytest.mark.parametrize(
    "answers", [ANSWERS, GYM, replace(ANSWERS, heldout="h.jsonl", algorithm="distillation")]
)
def test_it_is_short_and_says_why(answers: Answers) -> None:
    lines = starter(answers, "first").splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 110
    assert sum("# " in line for line in lines) >= 10


@pytest.mark.parametrize("odd", ["a: b", "-", "{x}", "true", "my data/t #1.jsonl"])
def test_odd_names_are_quoted(tmp_path: Path, odd: str) -> None:
    text = starter(replace(ANSWERS, model=odd, data=odd, prompt_field=odd), odd)
    tree = strict_yaml.parse(text, "first").tree
    assert tree["model"] == tree["data"]["train"] == tree["run"]["name"] == odd


def test_a_model_without_a_chat_template_gets_its_prompts_as_they_are(
    tmp_path: Path, answered: Answers
) -> None:
    assert load(config(tmp_path, answered)).config.data.chat_template == "none"


def test_procedural_data_brings_its_reward(tmp_path: Path) -> None:
    made = load(config(tmp_path, GYM)).config
    assert made.data.train.options["dataset"] == "chain_sum" and made.reward.name == "reasoning_gym"


@pytest.mark.parametrize(("algorithm", "meant"), [("gpro", "grpo"), ("dappo", "dapo")])
def test_a_mistyped_algorithm_is_refused_with_the_nearest(algorithm: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=meant):
        starter(replace(ANSWERS, algorithm=algorithm), "first")


def test_distillation_asks_for_its_teacher() -> None:
    with pytest.raises(ConfigError, match="teacher"):
        starter(replace(GYM, algorithm="distillation"), "first")
