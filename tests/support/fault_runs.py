"""A small run with two engines, for tests that plant faults."""

import json
from pathlib import Path

import yaml

CONFIG = {
    "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
    "data": {
        "train": {"path": "train.jsonl"},
        "heldout": {"path": "heldout.jsonl"},
        "chat_template": "none",
    },
    "reward": "exact_match",
    "algorithm": {"preset": "grpo", "samples_per_prompt": 4, "entropy_coefficient": 0.01},
    "batch": {"prompts_per_step": 8, "minibatch_prompts": 4},
    "actor": {"microbatch_tokens": 512, "optimizer": {"lr": 1.0e-3}},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 100, "num_engines": 2},
    "run": {"name": "calm", "steps": 5, "save_every": 1, "evaluate_every": 2, "keep_checkpoints": 10},
}


def write_data(path: Path) -> None:
    sums = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, sums[20:])))
    (path / "heldout.jsonl").write_text("\n".join(map(json.dumps, sums[:20])))


def write_project(path: Path) -> None:
    """Write the data of the run, and its config as run.yaml."""
    write_data(path)
    (path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
