"""Numbers that no run has, and NaN among options, are refused with the key."""

from pathlib import Path
from typing import Any

import pytest

from hybridrl import cli
from hybridrl.config.load import load
from hybridrl.config.options import taken
from hybridrl.config.rules import RuleContext, check
from hybridrl.errors import ConfigError

CONFIG = "model: m\ndata: {train: rows.jsonl}\nreward: exact_match\nrun: {name: first}\n"


def errors(tmp_path: Path, *overrides: str) -> list[str]:
    (tmp_path / "my.yaml").write_text(CONFIG)
    loaded = load(tmp_path / "my.yaml", overrides)
    return [str(e) for e in check(loaded, RuleContext(num_gpus=0, spec=None)) if "any run has" in str(e)]


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("run.steps=100000000000000000000000000000", "a number of 30 digits"),
        ("run.steps=2000000000", "2,000,000,000"),
        ("run.seed=100000000000000000000", "a number of 21 digits"),
        ("batch.prompts_per_step=4000000000000", "4,000,000,000,000"),
        ("batch.epochs=10000000", "10,000,000"),
        ("rollout.max_response_tokens=1000000000", "1,000,000,000"),
        ("actor.microbatch_tokens=9000000000000", "9,000,000,000,000"),
        ("reward.num_workers=100000", "100,000"),
    ],
)
def test_a_number_that_no_run_has_is_refused(tmp_path: Path, override: str, shown: str) -> None:
    [error] = errors(tmp_path, override)
    key = override.partition("=")[0]
    assert error.startswith(f"{key} = {shown} is more than any run has  (command line): at most ")


def test_large_numbers_that_a_run_may_have_pass(tmp_path: Path) -> None:
    large = ("run.seed=9223372036854775807", "run.steps=1000000000", "batch.prompts_per_step=100000")
    assert errors(tmp_path, *large, "rollout.max_response_tokens=10000000") == []


def plugin(*, a: float = 0.0, b: list[float] | None = None, c: Any = 0, d: Any = None) -> None: ...


NAN = float("nan")


@pytest.mark.parametrize("options", [{"a": NAN}, {"b": [1.0, NAN]}, {"c": NAN}, {"d": {"x": [NAN]}}])
def test_an_option_that_is_nan_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"plug-in x: . = .*nan.* is not a number that can be computed with"
    ):
        taken(plugin, options, title="plug-in x", where="my.yaml:3")


def test_other_options_pass() -> None:
    options = {"a": float("inf"), "b": [1.0], "c": "nan", "d": {"x": [None, "y"]}}
    assert taken(plugin, options, title="plug-in x", where="my.yaml:3") == options


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "my.yaml", "--gpus", "0"],
        ["plan", "my.yaml", "--gpus", "-3"],
        ["plan", "my.yaml", "--mean-response", "-5"],
        ["plan", "my.yaml", "--mean-response", "0"],
        ["import", "verl", "my.sh", "--prompts", "-5"],
        ["import", "verl", "my.sh", "--prompts", "0"],
        ["export", "runs/x", "--step", "-1"],
        ["verify", "my.yaml", "--tolerance", "-1e-6"],
        ["reward", "check", "my.yaml", "--rows", "0"],
    ],
    ids=" ".join,
)
def test_an_option_of_a_command_below_its_range_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(CONFIG)
    assert cli.main(command) == 2
    assert f"Invalid value for '{command[-2]}'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]
