"""observe.sinks as it is written, and the key that it took the place of."""

from typing import Any

import pytest

from hybridrl.config.load import load_as, parse_as
from hybridrl.config.run_folder import RunFolder, as_yaml
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.errors import ConfigErrors

BASE = "model: m\ndata: {train: d.jsonl}\n"
REWARD = "reward: exact_match\n"


def config(more: str, run: str = "run: {name: a}\n") -> Any:
    return parse_as(Config, f"{BASE}{REWARD}{run}{more}", "my.yaml").config


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", ("mlflow",)),
        ("observe: {sinks: []}", ()),
        ("observe: {sinks: [mlflow, tensorboard]}", ("mlflow", "tensorboard")),
        ("observe: {sinks: [{name: wandb, mode: online}]}", ({"name": "wandb", "mode": "online"},)),
        ("observe: {sinks: ['my_lab.sinks:Mine']}", ("my_lab.sinks:Mine",)),
    ],
)
def test_sinks_are_names_with_options(written: str, expected: tuple[Any, ...]) -> None:
    assert config(written).observe.sinks == expected


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("observe: {sinks: [{mode: online}]}", "has no name"),
        ("observe: {sinks: [wandb, {name: wandb, mode: online}]}", "names wandb twice"),
        ("observe: {sinks: wandb}", "is not a list"),
        ("observe: {sink: [wandb]}", "did you mean observe.sinks"),
        ("observe: {wandb: true}", "did you mean observe.sinks"),
    ],
)
def test_what_is_not_understood_is_refused(written: str, says: str) -> None:
    with pytest.raises(ConfigErrors, match=says):
        config(written)


@pytest.mark.parametrize(("root", "reward"), [(Config, REWARD), (SFTConfig, ""), (RMConfig, "")])
@pytest.mark.parametrize("value", ["true", "false"])
def test_the_old_key_names_the_new_one(root: Any, reward: str, value: str) -> None:
    text = f"{BASE}{reward}run:\n  name: a\n  mlflow: {value}\n"
    with pytest.raises(ConfigErrors) as refused:
        parse_as(root, text, "my.yaml")
    (error,) = refused.value.errors
    told = "run.mlflow = false is now observe.sinks = []" if value == "false" else "nothing: the key is gone"
    assert told in error.what and "hybridrl config migrate my.yaml" in error.fix
    assert error.where.startswith("my.yaml:")


def test_the_old_key_on_a_command_line_too() -> None:
    with pytest.raises(ConfigErrors, match=r"write observe.sinks=\[\]"):
        parse_as(Config, f"{BASE}{REWARD}run: {{name: a}}", "my.yaml", ["run.mlflow=false"])


WITH_SECRET = """\
model: m
data: {{train: d.jsonl}}
reward: {{name: "my_lab:Judge", api_key: {secret}, url: "https://me:{secret}@judge/"}}
run: {{name: a, folder: {folder}}}
observe: {{sinks: {sinks}}}
"""


def test_the_resolved_config_has_no_secret_and_loads(tmp_path: Any) -> None:
    text = WITH_SECRET.format(secret="abc123", folder=tmp_path, sinks="[]")
    shown = as_yaml(parse_as(Config, text, "my.yaml"))
    assert "abc123" not in shown
    again = parse_as(Config, shown, "resolved.yaml").config
    assert again.reward.options == {"api_key": "***", "url": "https://***@judge/"}


def test_a_resume_may_change_sinks_and_secrets(tmp_path: Any) -> None:
    first = WITH_SECRET.format(secret="abc123", folder=tmp_path, sinks="[]")
    RunFolder.create(parse_as(Config, first, "my.yaml")).release()
    later = WITH_SECRET.format(secret="xyz789", folder=tmp_path, sinks="[tensorboard]")
    RunFolder.open_for_resume(parse_as(Config, later, "my.yaml")).release()
    kept = load_as(Config, tmp_path / "a" / "resolved.yaml").config
    assert kept.observe.sinks == ("tensorboard",) and kept.reward.options["api_key"] == "***"
