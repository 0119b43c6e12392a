"""What peers are given of a case: its config as a file, and only work that they can do too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridrl.bench.base import Case
from hybridrl.errors import ConfigError


def written(config: Mapping[str, Any], folder: Path, steps: int) -> Path:
    """The config of a case as a file of a run in this folder. JSON is YAML."""
    file = folder / "run.yaml"
    run = {"name": "bench", "folder": str(folder), "steps": steps, "evaluate_every": 0}
    file.write_text(json.dumps({**config, "run": run}))
    return file


def is_one_update(config: Mapping[str, Any]) -> bool:
    """Whether a step is one optimizer step on fresh answers."""
    batch = config["batch"]
    return batch["minibatch_prompts"] == batch["prompts_per_step"] and batch.get("epochs", 1) == 1


def refuse_several_updates(case: Case) -> None:
    if not is_one_update(case.config):
        raise ConfigError(
            f"case {case.name} takes several optimizer steps on one batch, which a peer counts as several",
            fix="leave it out: --case NAME chooses another",
        )
