"""The section environment: short forms, several environments, and what is refused."""

import json
from typing import Any

import pytest

from hybridrl.config.load import parse_as
from hybridrl.config.run_folder import as_yaml
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigErrors

WHOLE = """\
model: {{path: models/tiny}}
data: {{train: prompts.jsonl}}
reward: none
environment: {section}
run: {{name: x}}
"""


def loaded(section: Any) -> Any:
    return parse_as(Config, WHOLE.format(section=json.dumps(section)), "my.yaml")


SEVERAL = {"game": {"name": "guess", "form": 0.2}, "calculator": {"tools": ["a:b"], "max_turns": 3}}


def test_a_name_is_a_section() -> None:
    cfg = loaded("my_games:Guess").config.environment
    assert cfg.name == "my_games:Guess" and list(cfg.all) == ["Guess"] and cfg.place("Guess") == "environment"


def test_further_keys_are_options() -> None:
    cfg = loaded({"name": "guess", "form": 0.2, "tools": ["a:b", {"mcp": {"url": "u"}}]}).config.environment
    assert cfg.options == {"form": 0.2} and cfg.tools == ("a:b", {"mcp": {"url": "u"}})


def test_several_environments_have_options_and_limits_of_their_own() -> None:
    cfg = loaded({"field": "kind", "several": SEVERAL}).config.environment
    assert {name: (own.name, own.max_turns, own.options) for name, own in cfg.all.items()} == {
        "game": ("guess", 8, {"form": 0.2}),
        "calculator": ("tools", 3, {}),
    }
    assert cfg.place("game") == "environment.several.game"


@pytest.mark.parametrize(("given", "memory_mb"), [(True, 512), ({"memory_mb": 64}, 64), (False, None)])
def test_a_box_is_a_section_with_short_forms(given: Any, memory_mb: int | None) -> None:
    several = {"field": "kind", "several": {"a": {"name": "b:C", "box": given}}}
    for own in (loaded({"name": "b:C", "box": given}), loaded(several)):
        (found,) = own.config.environment.all.values()
        assert (found.box and found.box.memory_mb) == memory_mb
        again = parse_as(Config, as_yaml(own, 100), "resolved.yaml")
        assert again.config.environment == own.config.environment


def test_a_resolved_config_reads_as_the_one_it_came_from() -> None:
    for section in ("guess", {"field": "kind", "several": SEVERAL}):
        first = loaded(section)
        again = parse_as(Config, as_yaml(first, 100), "resolved.yaml")
        assert again.config == first.config


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"field": "kind"}, "field needs several"),
        ({"several": SEVERAL}, "several needs field"),
        ({"field": "kind", "several": SEVERAL, "name": "guess"}, "name belongs into each environment"),
        ({"field": "kind", "several": SEVERAL, "form": 1}, "form belongs into each environment"),
        (
            {"field": "kind", "several": {"game": {"max_turns": 0}}},
            "several.game.max_turns: Input should be greater than 0",
        ),
        ({"tools": "a:b"}, "environment.tools = a:b is not a list"),
        ({"step_timeout_s": -1}, "environment.step_timeout_s = -1 is not a number above 0"),
    ],
)
def test_mistakes_are_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loaded(section)
    assert said in str(caught.value)
