"""The first argument of eval and chat: a config, a run or a model."""

from pathlib import Path

import pytest

from hybridrl.errors import ConfigError, UserError
from hybridrl.serve.named import named

CONFIG = """
model: {path: m, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: t.jsonl}
reward: exact_match
run: {name: a}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "resolved.yaml").write_text(CONFIG)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def test_what_is_named_is_told_by_its_files(place: Path) -> None:
    assert named("c.yaml").kind == "config" and named("runs/a").kind == "run"
    assert named("model").kind == "model" and named("Qwen/Qwen3-8B").kind == "model"
    assert named("runs/a", step=3).step == 3


def test_a_model_has_the_data_and_the_reward_of_a_config_and_its_own_weights(place: Path) -> None:
    loaded = named("model", config=Path("c.yaml")).load("run.seed=1")
    assert loaded.config.model.path == "model" and loaded.config.model.make is None
    assert loaded.config.reward.name == "exact_match" and loaded.config.run.seed == 1


def test_a_model_alone_has_what_the_command_line_says(place: Path) -> None:
    loaded = named("model", ["reward=math_verify"]).load("data.heldout=h.jsonl")
    assert loaded.config.reward.name == "math_verify"
    assert loaded.config.data.heldout is not None and loaded.config.data.heldout.paths == ("h.jsonl",)
    assert named("model").load().config.reward.name == "none"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("runs/b", {}, "there is no config, run or model runs/b: there is runs/a"),
        ("runs", {}, r"runs holds neither a run \(resolved.yaml\) nor a model.*there is runs/a"),
        ("c.yaml", {"step": 1}, "--step is of a run, and c.yaml is none"),
        ("runs/a", {"config": Path("c.yaml")}, "runs/a is a run, which has its config"),
        ("c.yaml", {"config": Path("c.yaml")}, "--config goes with a model"),
    ],
)
def test_what_cannot_be_meant_is_refused(place: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(text, **options)


def test_a_config_that_is_not_there_is_named_when_it_is_read(place: Path) -> None:
    with pytest.raises(ConfigError, match="no config at b.yaml"):
        named("b.yaml").load()
