"""Rotary frequencies; tests/invariants compares them with transformers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainer_values as values

from hybridrl.errors import ModelError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import ModelSpec, read
from hybridrl.trainer.megatron.rope import amplitude, inverse_frequencies


def spec(folder: Path) -> ModelSpec:
    config = {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rms_norm_eps": 1e-6, **values.SIZES}
    (folder / "config.json").write_text(json.dumps(config))
    return read(folder)


def test_frequencies_fall_from_one_radian_per_token_towards_the_base(tmp_path) -> None:
    frequency = inverse_frequencies(spec(tmp_path))
    assert frequency[0] == 1.0
    torch.testing.assert_close(frequency[1:] / frequency[:-1], torch.full((7,), 10000.0 ** (-1 / 8)))


def test_an_unknown_scaling_is_refused(tmp_path) -> None:
    longrope = replace(spec(tmp_path), rope_scaling={"rope_type": "longrope", "factor": 4.0})
    with pytest.raises(ModelError, match="'longrope'.*yarn"):
        MegatronLayout.refuse_unbuildable(longrope, where="here")


def test_yarn_is_refused_where_some_layers_have_a_window(tmp_path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    windowed = replace(spec(tmp_path), rope_scaling=yarn, window=4, windowed_layers=(0,))
    with pytest.raises(ModelError, match="'yarn' on a model with windows"):
        MegatronLayout.refuse_unbuildable(windowed, where="here")


def test_linear_scaling_slows_every_dim(tmp_path) -> None:
    plain = spec(tmp_path)
    slowed = replace(plain, rope_scaling={"rope_type": "linear", "factor": 8.0})
    torch.testing.assert_close(inverse_frequencies(slowed), inverse_frequencies(plain) / 8)


def test_yarn_keeps_fast_dims_slows_slow_ones_and_sharpens_attention(tmp_path) -> None:
    plain = spec(tmp_path)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    scaled = replace(plain, rope_scaling=yarn)
    ratio = inverse_frequencies(scaled) / inverse_frequencies(plain)
    assert ratio[0] == 1.0
    torch.testing.assert_close(ratio[-1], torch.tensor(0.25))
    assert (ratio.diff() <= 0).all()
    assert amplitude(scaled) == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert amplitude(plain) == 1.0
