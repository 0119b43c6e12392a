"""A script, plain lines and a YAML say the same."""

from pathlib import Path

import pytest

from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import read

SAME = {"data.train_batch_size": 64, "a.b": ["x", "y"], "a.c": None, "a.d": True, "a.e": 1e-6}

SCRIPT = """\
python3 -m verl.trainer.main_ppo --config-name=ppo_megatron_trainer \\
    data.train_batch_size=64 +a.b="['x','y']" ++a.c=null a.d=True a.e=1e-6 "$@"
"""
PLAIN = "# some\ndata.train_batch_size=64\na.b=[x,y]\na.c=null\na.d=True\na.e=1e-6\n"
YAML = """\
defaults: [one, _self_]
data: {train_batch_size: 64}
a:
  _target_: x.y
  b: [x, y]
  c: null
  d: true
  e: 1e-6
  f: ${data.train_batch_size}
  g: ???
"""


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("run.sh", SCRIPT), ("plain", PLAIN), ("verl.yaml", YAML)])
def test_all_three_read_alike(tmp_path: Path, name: str, text: str) -> None:
    launch = read(written(tmp_path, name, text), {})
    assert {one.key: one.value for one in launch.overrides} == SAME


def test_the_name_of_the_config_is_read(tmp_path: Path) -> None:
    assert read(written(tmp_path, "run.sh", SCRIPT), {}).config_name == "ppo_megatron_trainer"


def test_a_call_in_an_array_is_found(tmp_path: Path) -> None:
    script = 'ARGS=(a.b=1)\nCALL=(python3 -m verl.trainer.main_ppo "${ARGS[@]}")\n"${CALL[@]}" a.c=2\n'
    launch = read(written(tmp_path, "run.sh", script), {})
    assert [one.text for one in launch.overrides] == ["a.b=1", "a.c=2"]


@pytest.mark.parametrize(
    "module",
    [
        "verl.experimental.fully_async_policy.fully_async_main",
        "verl.trainer.main_ppo",
        "recipe/dapo/main_dapo.py",
        "verl.trainer.fsdp_sft_trainer",
    ],
)
def test_every_trainer_of_verl_is_a_launch_whose_other_words_are_listed(tmp_path: Path, module: str) -> None:
    script = f"X=1\npython3 -m {module} --flag word a.b=1\n"
    launch = read(written(tmp_path, "run.sh", script), {})
    assert launch.module == module
    assert [one.text for one in launch.overrides] == ["a.b=1"]
    assert [one.source for one in launch.remarks] == ["--flag", "word"]


@pytest.mark.parametrize("text", ["", "echo hello\n", "python -m verl.trainer.main_ppo\n"])
def test_a_file_that_sets_nothing_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="starts no trainer"):
        read(written(tmp_path, "run.sh", text), {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        read(tmp_path / "run.sh", {})
