"""Launches of verl that are refused as a whole, and sizes that one of our engines lacks."""

from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import Launch, Override, read
from hybridrl.importer.verl import translate
from hybridrl.importer.verl_keys import M, R


def launch(**keys: Any) -> Launch:
    named = {f"{M}.path": "m", "data.train_files": "t.parquet"}
    named |= {key.replace("__", "."): value for key, value in keys.items()}
    overrides = tuple(Override(key, value, str(value), 1) for key, value in named.items())
    return Launch("verl.trainer.main_ppo", overrides, "")


def test_a_launch_that_trains_on_examples_is_named_as_such(tmp_path: Path) -> None:
    script = tmp_path / "sft.sh"
    script.write_text("torchrun -m verl.trainer.sft_trainer data.train_files=x model.path=m\n")
    with pytest.raises(ConfigError, match="sft_trainer trains on examples.*hybridrl sft"):
        translate(read(script, {}))


def test_a_model_that_the_script_leaves_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no actor_rollout_ref.model.path  \(line 1 leaves it empty\)"):
        translate(launch(**{f"{M}.path": None}))


@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_expert_parallel_engines_are_those_of_sglang(tmp_path: Path, name: str) -> None:
    found = translate(launch(**{f"{R}.expert_parallel_size": 4, f"{R}.name": name}))
    (tmp_path / "imported.yaml").write_text(found.as_yaml("test"))
    sizes = load(tmp_path / "imported.yaml").config.rollout.parallel
    assert getattr(sizes, "ep", None) == (4 if name == "sglang" else None)
    listed = " ".join(one.why for one in found.no_counterpart)
    assert ("rollout.engine: sglang has ep" in listed) == (name == "vllm")
