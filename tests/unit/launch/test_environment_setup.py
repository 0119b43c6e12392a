"""Environments and tools are tried before a run starts, and refused with the change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.load import parse_as
from hybridrl.config.schema import Config
from hybridrl.data.tables import Rows
from hybridrl.errors import HybridRLError
from hybridrl.launch.environment_setup import try_environments, unfit_environments
from hybridrl.launch.environment_trial import trial

TEXT = """\
model: policy
data: {train: {task: guess, part: train, size: 20}, chat_template: none}
reward: none
rollout: {max_prompt_tokens: 16, max_response_tokens: 16, max_context_tokens: 64}
run: {name: first}
"""


def loaded(section: str) -> Any:
    return parse_as(Config, f"{TEXT}environment: {section}\n", "my.yaml")


def tried(section: str, rows: Sequence[dict[str, Any]] = ({"prompt": "=", "answer": "3"},)) -> str:
    return try_environments(loaded(section), [Rows(list(rows), "rows")]).described


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("gues", "environments has no 'gues'"),
        ("{name: guess, forms: 3}", "has no option 'forms'"),
        ("{tools: [x]}", "environment.tools has 'x', which is no tool"),
        ("{tools: [{mcp: {}}]}", "give either command, to start a server, or url"),
        ("{tools: [{python: {memory: 3}}]}", "has no option 'memory'"),
        ("{field: kind, several: {a: {name: guess, form: x}}}", "form = x is not a number"),
    ],
)
def test_what_can_be_known_without_code_from_outside_is_known(section: str, said: str) -> None:
    (error,) = unfit_environments(loaded(section).config.environment)
    assert said in str(error)


def test_code_from_outside_is_not_loaded() -> None:
    section = EnvironmentConfig.model_validate({"name": "absent:Game", "tools": ["absent:tool"]})
    assert not list(unfit_environments(section))


def test_environments_and_tools_are_described() -> None:
    assert tried("guess") == "guess"
    assert tried("{name: 'odd_environments:WithTools'}") == "WithTools with 3 tools: add, sleep, fail"


@pytest.mark.parametrize(
    ("section", "by_template"),
    [("guess", False), ("lookup", False), ("'odd_environments:WithTools'", True)],
)
def test_tools_that_are_methods_alone_are_calls_in_the_format_of_the_template(
    section: str, by_template: bool
) -> None:
    """lookup has a method too, and says how its call is written as plain text."""
    row = {"prompt": "7?", "answer": "3", "registers": "0123456789", "register": 7}
    assert try_environments(loaded(section), [Rows([row], "rows")]).calls_by_template is by_template


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{tools: ['odd_environments:untyped']}", "its parameter query has no type hint"),
        ("'odd_environments:WithoutStep'", "has no method step"),
        ("{name: guess, variables: [HYBRIDRL_UNSET]}", "environment.variables lists HYBRIDRL_UNSET"),
        (
            "{name: 'odd_environments:HangsAtReset', reset_timeout_s: 0.3}",
            "reset did not return within 0.3 s",
        ),
        ("{field: kind, several: {a: {name: guess}}}", "rows has kind = None, and environment.several has a"),
    ],
)
def test_the_rest_is_refused_before_a_worker_starts(section: str, said: str) -> None:
    with pytest.raises(HybridRLError) as caught:
        tried(section)
    assert said in str(caught.value)


def test_the_check_of_a_config_plays_its_environment() -> None:
    found = {finding.kind: (name, finding.verdict) for name, finding in trial(loaded("guess"), episodes=10)}
    assert found["random"] == ("guess", "ok") and found["seeds"] == ("guess", "ok")


def test_a_config_without_an_environment_has_nothing_to_check(tmp_path: Path) -> None:
    plain = parse_as(Config, TEXT.replace("max_context_tokens: 64", "temperature: 1"), "my.yaml")
    with pytest.raises(HybridRLError, match="has no environment"):
        list(trial(plain, episodes=1))
