"""The JSON schema admits every recipe, and refuses what the schema of the config refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridrl import cli
from hybridrl.config import keys
from hybridrl.config.json_schema import json_schema
from hybridrl.config.kinds import KINDS
from hybridrl.config.strict_yaml import parse

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
SMALLEST = {"model": "m", "data": {"train": "d.jsonl"}, "reward": "exact_match", "run": {"name": "r"}}


def kind_of(recipe: Path) -> str:
    return next((kind for kind in ("sft", "rm") if recipe.name.startswith(kind)), "launch")


def errors(tree: Any, command: str = "launch") -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    return [
        error.message
        for error in jsonschema.Draft202012Validator(json_schema(KINDS[command])).iter_errors(tree)
    ]


def properties(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{prefix}{name}", inner
        yield from properties(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert errors(parse(recipe.read_text(), recipe.name).tree, kind_of(recipe)) == []


@pytest.mark.parametrize("command", KINDS)
def test_the_schema_itself_is_valid(command: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema(KINDS[command]))


@pytest.mark.parametrize("command", KINDS)
def test_it_has_every_key_with_its_text_and_no_other(command: str) -> None:
    found = dict(properties(json_schema(KINDS[command])))
    assert list(found) == [key.name for key in keys.all_keys(KINDS[command])]
    assert all(inner["description"] for inner in found.values())
    assert "$ref" not in json.dumps(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": {"name": "r", "step": 3}},
        {"run": {"name": "r", "steps": "3"}},
        {"run": {"name": "r", "steps": 0}},
        {"run": {}},
        {"algorithm": {"kl": {"in": "losses"}}},
        {"algorithm": {"preset": "grop"}},
        {"rollout": {"parallel": {"tpp": 2}}},
        {"sections": {}},
        {"data": {"train": {"path": [3]}}},
    ],
)
def test_mistakes_are_refused(wrong: dict[str, Any]) -> None:
    assert errors(SMALLEST) == []
    assert errors({**SMALLEST, **wrong})


@pytest.mark.parametrize(
    "right",
    [
        {"algorithm": {"loss": {"name": "ppo_clip", "clip_high": 0.3}, "preset": None}},
        {"reward": {"name": "math_verify", "answer_field": "a", "an_option": 1}},
        {"batch": None, "algorithm": {"dynamic_sampling": {}}},
        {"rollout": {"parallel": {"tp": 4, "dp_attention": 2}}},
        {"data": {"train": {"task": "countdown", "size": 3}}},
        {"data": {"train": ["a.jsonl", "b/*.csv"], "heldout": {"path": ["c.json"]}}},
        {"data": {"train": {"hub": "openai/gsm8k", "subset": "main", "split": "train"}}},
    ],
)
def test_what_a_config_may_have_is_valid(right: dict[str, Any]) -> None:
    assert errors({**SMALLEST, **right}) == []


@pytest.mark.parametrize(("kind", "key"), [("rl", "reward"), ("sft", "batch"), ("rm", "data")])
def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], kind: str, key: str) -> None:
    assert cli.main(["config", "schema", "--kind", kind]) == 0
    assert key in json.loads(capsys.readouterr().out)["properties"]
