"""A folder that holds a reward model."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hybridrl.models import tiny
from hybridrl.models.spec import with_one_label


def write_reward_model(folder: Path, *, drop: str = "none") -> None:
    """As `hybridrl rm` exports one; `drop` names a tensor that is left out."""
    tiny.qwen3_arithmetic(folder, 1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(with_one_label(config)))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["score.weight"] = np.ones((1, config["hidden_size"]), np.float32)
    tensors.pop(drop, None)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
