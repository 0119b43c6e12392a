"""What the FSDP backend lacks is refused by each rank at once: none waits for the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_models
import trainer_values as values

from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError, LayoutError, ModelError, ResourceError
from hybridrl.trainer import base
from hybridrl.trainer.setup import RankSetup

NOWHERE = "file:///nobody/meets/here"


def setup(folder: Path, *, parallel: TrainParallel | None = None, **options: Any) -> RankSetup:
    actor = values.make_actor(**options).model_copy(update={"backend": "fsdp"})
    return values.make_setup(0, NOWHERE, folder, parallel or TrainParallel(dp=2), actor=actor)


def test_sizes_models_and_options(tmp_path: Path) -> None:
    dense = values.make_model(tmp_path, "qwen3")
    windowed = trainer_models.make_model(tmp_path, "gemma2")
    with pytest.raises(LayoutError, match="pp = 2: the FSDP backend has tp, cp, dp and shard"):
        base.open(setup(dense, parallel=TrainParallel(pp=2, dp=1)))
    with pytest.raises(LayoutError, match="tp = 3 does not divide"):
        base.open(setup(dense, parallel=TrainParallel(tp=3, dp=1)))
    with pytest.raises(ModelError, match="this model is gemma2"):
        base.open(setup(windowed))
    with pytest.raises(ConfigError, match="actor.precision = fp16"):
        base.open(setup(dense, precision="fp16"))


def test_a_gpu_that_the_setup_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = values.make_model(tmp_path, "qwen3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ResourceError, match="torch sees a GPU"):
        base.open(setup(folder))
