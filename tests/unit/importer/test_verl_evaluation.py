"""Evaluations of a verl script sample as they do there."""

from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.verl import translate
from hybridrl.importer.verl_keys import M, R

LEAST: dict[str, Any] = {f"{M}.path": "m", "data.train_files": "t.parquet"}


@pytest.mark.parametrize(("do_sample", "expected"), [(True, (0.7, 0.9, 20)), (False, (0.0, 1.0, None))])
def test_an_evaluation_samples_as_the_script_does(tmp_path: Path, do_sample: bool, expected: Any) -> None:
    keys = {"do_sample": do_sample, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    given = LEAST | {f"{R}.val_kwargs.{key}": value for key, value in keys.items()}
    overrides = tuple(Override(key, value, str(value), 1) for key, value in given.items())
    found = translate(Launch("verl.trainer.main_ppo", overrides, ""))
    path = tmp_path / "imported.yaml"
    path.write_text(found.as_yaml("test"))
    evaluate = load(path).config.evaluate
    assert (evaluate.temperature, evaluate.top_p, evaluate.top_k) == expected
    assert not [one for one in found.no_counterpart if "val_kwargs.top" in one.source]
