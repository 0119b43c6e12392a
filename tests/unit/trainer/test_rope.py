"""Rotary frequencies; tests/invariants compares them with transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainer_values as values

from hybridrl.errors import ModelError
from hybridrl.models.spec import ModelSpec, read
from hybridrl.trainer.megatron.rope import inverse_frequencies


def spec(folder: Path) -> ModelSpec:
    config = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rms_norm_eps": 1e-6, **values.SIZES}
    (folder / "config.json").write_text(json.dumps(config))
    return read(folder)


def test_frequencies_fall_from_one_radian_per_token_towards_the_base(tmp_path) -> None:
    frequency = inverse_frequencies(spec(tmp_path))
    assert frequency[0] == 1.0
    torch.testing.assert_close(frequency[1:] / frequency[:-1], torch.full((7,), 10000.0 ** (-1 / 8)))


def test_an_unknown_scaling_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="'yarn'.*llama3"):
        inverse_frequencies(replace(spec(tmp_path), rope_scaling={"rope_type": "yarn", "factor": 4.0}))
