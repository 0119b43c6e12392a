"""A key that may be absent, or null, may be so in everything that is done before a worker starts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel
from reward_model_folders import write_reward_model

from hybridrl import cli
from hybridrl.config import keys
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.models import tiny

ROW = {"prompt": "1+1=", "answer": "2", "response": "2", "chosen": "2", "rejected": "3"}
_EXAMPLES = "model: policy\ndata: {train: rows.jsonl, chat_template: none}\nrun: {name: first}\n"
_LEAST = f"{_EXAMPLES}reward: exact_match\nrollout: {{max_prompt_tokens: 16, max_response_tokens: 16}}\n"
_ALL_ROLES = f"""{_LEAST}
algorithm: {{estimator: gae, kl: {{coefficient: 0.1, target: 0.1}}, dynamic_sampling: {{}}}}
critic: {{parallel: {{dp: 1}}}}
reference: {{parallel: {{dp: 1}}}}
reward_model: {{path: judge, parallel: {{dp: 1}}}}
batch: {{prompts_per_step: 4, minibatch_prompts: 2}}
"""

CONFIGS: dict[str, tuple[str, type[BaseModel], str]] = {
    "launch": ("launch", Config, _LEAST),
    "launch with all roles": ("launch", Config, _ALL_ROLES),
    "sft": ("sft", SFTConfig, _EXAMPLES),
    "rm": ("rm", RMConfig, _EXAMPLES),
}
"""Command, its schema, and a config that leaves out what may be left out, but for the one with all roles."""

_ONE_OF_THREE = tuple(f"{split}.{key}" for split in ("train", "heldout") for key in ("path", "task", "hub"))
"""A source has a path, a task or a data set of the hub: none is optional."""

_IN_A_SECTION = {
    "launch": (
        *("environment.", "frozen.", "judge.", "program.", "reward_model."),
        *("critic.parallel.", "reference.parallel."),
    ),
    "launch with all roles": ("environment.", "frozen.", "judge.", "program."),
}
"""Optional sections that a config leaves out: a key inside asks for one."""


def nullable() -> list[tuple[str, str]]:
    """Every key of every config that may be null, and "" for the config as it is."""
    found = []
    for name, (_, root, _text) in CONFIGS.items():
        optional = [key.name for key in keys.all_keys(root) if _may_be_null(key)]
        inside = _IN_A_SECTION.get(name, ())
        found += [(name, key) for key in ["", *optional] if not key.startswith(inside)]
    return found


def _may_be_null(key: keys.Key) -> bool:
    required = key.field.is_required() or key.name.endswith(_ONE_OF_THREE)
    return key.field.default is None and not required


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optional")
    (folder / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 4)
    tiny.qwen3_arithmetic(folder / "policy", 0)
    write_reward_model(folder / "judge")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(folder)

    def command(text: str, *arguments: str, overrides: Sequence[str] = ()) -> int:
        (folder / "my.yaml").write_text(text)
        return cli.main([*arguments, "my.yaml", *overrides])

    return command


@pytest.mark.parametrize(("name", "key"), nullable())
def test_no_optional_key_is_needed_by_a_dry_run_or_a_plan(
    run: Callable[..., int], name: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, text = CONFIGS[name]
    null = [f"{key}=null"] if key else []
    for arguments in (
        [command, "--dry-run"],
        ["plan", "--for", command],
        ["plan", "--json", "--for", command],
    ):
        assert run(text, *arguments, overrides=null) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["launch", "launch with all roles"])
def test_no_optional_key_is_needed_by_a_check(run: Callable[..., int], name: str) -> None:
    assert run(CONFIGS[name][2], "config", "check") == 0


@pytest.mark.parametrize("command", ["sft", "rm"])
def test_a_run_on_examples_says_how_many_are_held_out(
    run: Callable[..., int], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, said in (("data.heldout=null", "none held out"), ("data.heldout=rows.jsonl", "4 held out")):
        assert run(_EXAMPLES, command, "--dry-run", overrides=[override]) == 0
        assert f"4 examples, {said}" in capsys.readouterr().out
