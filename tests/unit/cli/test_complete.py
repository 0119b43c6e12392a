"""What TAB offers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.cli import complete


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").mkdir()
    for name in ("my.yaml", "mine.yml", "other.yaml", "my.txt", ".my.yaml", "runs/resolved.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(shell_line: str, cwd: Path) -> list[str]:
    """The answer to a shell that asks with the words of a line, of which the last is not finished."""
    asked = {"_HYBRIDRL_COMPLETE": "complete_bash", "COMP_WORDS": shell_line}
    asked["COMP_CWORD"] = str(len(shell_line.split(" ")) - 1)
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-m", "hybridrl"]
    env = {**os.environ, **asked, "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_shell_is_given_its_script() -> None:
    command = ["bash", "-c", f"{sys.executable} -m hybridrl --show-completion; exit $?"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_HYBRIDRL_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", ["mine.yml", "my.yaml", "other.yaml", "runs/"]),
        ("my", ["my.yaml"]),
        ("runs/", ["runs/resolved.yaml"]),
        ("none/", []),
    ],
)
def test_configs_are_offered(folder: Path, typed: str, found: list[str]) -> None:
    assert complete.configs(typed) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("hybridrl launch my", ["my.yaml"]),
        ("hybridrl launch my.yaml actor.parallel.t", ["actor.parallel.tp="]),
        ("hybridrl launch my.yaml actor.offload=o", ["actor.offload=optimizer"]),
        ("hybridrl launch my.yaml run.export=", ["run.export=true", "run.export=false"]),
        ("hybridrl launch my.yaml rollout.num_engines=", []),
        ("hybridrl launch my.yaml actor.precision=fp1", ["actor.precision=fp16"]),
        ("hybridrl rm my.yaml data.chosen", ["data.chosen_field="]),
        ("hybridrl plan my.yaml --for sft data.resp", ["data.response_field="]),
        ("hybridrl launch my.yaml data.chosen", []),
        ("hybridrl config explain rollout.temp", ["rollout.temperature"]),
    ],
)
def test_a_shell_is_answered(folder: Path, line: str, found: list[str]) -> None:
    assert offered(line, folder) == found
