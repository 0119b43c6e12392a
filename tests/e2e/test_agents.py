"""Episodes of several turns on the real stack: the games are learnt, and environments that fail are named."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_runs import ROOT, SUPPORT, first, last, launched

CALCULATOR = [sys.executable, str(SUPPORT / "mcp_calculator.py")]

CONFIG: dict[str, Any] = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {"train": {"task": "last_digit", "part": "train"}, "chat_template": "none"},
    "reward": "exact_match",
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4},
    "batch": {"prompts_per_step": 16},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8, "max_context_tokens": 64},
    "run": {"name": "agents", "steps": 2, "evaluate_every": 0, "export": False},
}


@pytest.mark.slow
def test_guess_is_learnt_from_random_weights(tmp_path: Path) -> None:
    metrics, _ = launched(tmp_path, str(ROOT / "configs" / "guess.yaml"))
    solved = "val-aux/guess/solved/mean_at_1"
    assert first(metrics, solved) <= 0.2 and last(metrics, solved) >= 0.8


@pytest.mark.slow
def test_lookup_is_learnt_from_random_weights_with_two_seeds_of_three(tmp_path: Path) -> None:
    learnt = 0
    for seed in (21, 22, 23):
        folder = tmp_path / str(seed)
        folder.mkdir()
        metrics, _ = launched(folder, str(ROOT / "configs" / "lookup.yaml"), f"run.seed={seed}")
        answers = last(metrics, "val-aux/lookup/solved/mean_at_1")
        calls = last(metrics, "val-aux/lookup/called_right/mean_at_1")
        learnt += answers >= 0.8 and calls >= 0.95
    assert learnt >= 2


def write(folder: Path, environment: dict[str, Any]) -> str:
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG | {"environment": environment}))
    return "run.yaml"


@pytest.mark.slow
def test_a_run_calls_a_tool_of_a_real_mcp_server(tmp_path: Path) -> None:
    environment = {
        "tools": [{"mcp": {"command": CALCULATOR, "only": ["add"]}}],
        "text_calls": {"add": r"(?P<a>[0-9]+)\+(?P<b>[0-9]+)"},
        "max_turns": 3,
    }
    metrics, _ = launched(tmp_path, write(tmp_path, environment))
    assert sum(row.get("tool/add/calls", 0) for row in metrics) > 0
    assert last(metrics, "tool/add/errors") == 0


@pytest.mark.slow
def test_environments_that_hang_crash_and_lie_are_named_and_the_run_goes_on(tmp_path: Path) -> None:
    """Each episode misbehaves the first time that it is played, in one way of three."""
    (tmp_path / "played").mkdir()
    environment = {
        "name": "odd_environments:Moody",
        "folder": str(tmp_path / "played"),
        "step_timeout_s": 2,
        "episodes_per_process": 8,
        "max_turns": 3,
    }
    metrics, _ = launched(tmp_path, write(tmp_path, environment))
    assert sum(row.get("episode/retried", 0) for row in metrics) >= 3
    assert max(row["step"] for row in metrics) == 2 and last(metrics, "episode/ended/failed") == 0
