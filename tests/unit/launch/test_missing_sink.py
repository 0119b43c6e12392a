"""A sink that is not installed is refused before a run starts, where the run is driven from."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.verdict import SCOPES, verdict

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
batch: {prompts_per_step: 4}
rollout: {max_prompt_tokens: 16, max_response_tokens: 4}
run: {name: a}
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)


def errors_in(scope: str, sinks: str) -> list[str]:
    machine = Machine(2, 24 * GIB, 20 * GIB, 8 * GIB, ())
    loaded = load("my.yaml", [f"observe.sinks={sinks}"])
    return [str(error) for error in verdict(loaded, SCOPES[scope], machine).errors]


@pytest.mark.parametrize("scope", ["launch", "launch --on ray"])
def test_it_is_refused_with_the_command_that_installs_it(scope: str) -> None:
    (error,) = errors_in(scope, "['sink_values:NotInstalled']")
    assert "no_such_package_here is not installed  (command line)" in error
    assert "pip install 'no-such-package>=2'" in error


def test_a_job_has_packages_of_its_own() -> None:
    assert errors_in("launch --on slurm", "['sink_values:NotInstalled']") == []


@pytest.mark.parametrize("scope", SCOPES)
def test_an_unknown_sink_is_refused_everywhere(scope: str) -> None:
    (error,) = errors_in(scope, "[wandbb]")
    assert "sinks has no 'wandbb'  (command line)" in error
