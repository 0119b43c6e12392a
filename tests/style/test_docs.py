"""Every command of the documentation is run if it is cheap, or else parsed; every config is loaded."""

import runpy
import sys
from pathlib import Path

import pytest
from command_tree import parsed
from documented import (
    OTHERS,
    PAGES,
    RECIPES,
    ROOT,
    Command,
    blocks,
    commands,
    configs,
    make_targets,
    named_files,
    named_keys,
    shown_files,
)
from pydantic import BaseModel
from typer._click.exceptions import MissingParameter
from typer.exceptions import TyperException

from hybridrl import cli
from hybridrl.config import keys
from hybridrl.config.kinds import load_any
from hybridrl.config.load import load_as
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import RMConfig, SFTConfig
from hybridrl.config.strict_yaml import parse

CONFIG = """\
model: {path: models/tiny, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, prompt_field: question, chat_template: none}
reward: exact_match
batch: {prompts_per_step: 64, minibatch_prompts: 32}
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first, folder: out}
"""
"""What `my.yaml` is in the documentation."""

RUN = {"doctor", "init", "import", "plan", "config", "algo", "launch", "sft", "rm"}
"""Commands that take seconds, those that start something with --dry-run."""

STARTS = {"launch", "sft", "rm"}

KINDS = {"sft": SFTConfig, "rm": RMConfig}
"""Commands whose configs are of another kind than those of reinforcement learning."""

ALL = [command for page in [*PAGES, *RECIPES] for command in commands(page)]
OURS = list({command.text: command for command in ALL if command.words[0] == "hybridrl"}.values())
PLACEHOLDERS = {
    "...": "my.yaml",
    "CONFIG": "my.yaml",
    "NAME": "grpo",
    "KEY": "actor",
    "FILE": "prompts.jsonl",
}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def arguments(command: Command) -> list[str]:
    return [PLACEHOLDERS.get(word, word) for word in command.words[1:]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would be: with a config, its data, a launch of verl's, and what the pages write."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n')
    (tmp_path / "run.sh").write_text(blocks((ROOT / "docs/coming_from_verl.md").read_text("utf-8"))[0])
    for name in ("configs", "docs", "benchmarks", ".venv-vllm"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path, content in (item for page in PAGES for item in shown_files(page).items()):
        if (ROOT / path).exists():  # a file of the project, which the folder reaches through a link
            continue
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.parametrize("words", ["launch my.yaml --dryrun", "lunch my.yaml", "config explan actor", "plan"])
def test_a_wrong_command_is_found(words: str) -> None:
    with pytest.raises(TyperException):
        parsed(words.split())


def test_the_pages_show_commands() -> None:
    assert {command.page for command in OURS} >= {"README.md", "docs/slurm.md", "docs/coming_from_verl.md"}
    assert any(command.text == "make quickstart" for command in ALL)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_commands_and_their_options_exist(command: Command, folder: Path) -> None:
    try:
        path, given = parsed(arguments(command))
    except MissingParameter:
        assert command.inline
        return
    if config := given.get("config"):
        wanted = given.get("command") or (path[0] if path[0] in KINDS else None)
        load_any(wanted, Path(str(config)), given.get("overrides") or [])


def is_run(command: Command) -> bool:
    """It is cheap, and the page shows no error of it."""
    names = command.words[1:2]
    return names != [] and names[0] in RUN and not command.fails and not command.inline


def is_script(command: Command) -> bool:
    """It runs a Python file that its page shows whole."""
    program, *names = command.words
    return program == "python" and names[:1] != ["-m"] and names[0] in shown_files(ROOT / command.page)


PAGES_THAT_RUN = list(dict.fromkeys(command.page for command in OURS if is_run(command)))


@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_cheap_commands_run(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page: a later command may need what an earlier one wrote."""
    if page == "docs/vllm.md" and not (ROOT / ".venv-vllm").exists():
        pytest.skip("vLLM is not installed: make setup-vllm")
    for script in (command for command in ALL if command.page == page and is_script(command)):
        runpy.run_path(script.words[1])
    for command in (command for command in OURS if command.page == page and is_run(command)):
        words = arguments(command)
        dry = ["--dry-run"] if words[0] in STARTS and "--dry-run" not in words else []
        # A dry run refuses to resume a run that no command of a page has made.
        code = cli.main([word for word in [*words, *dry] if word != "--resume"])
        said = capsys.readouterr()
        # Of a machine that lacks something, doctor says so
        assert code == 0 or words[0] == "doctor", f"{command}\n{said.out}{said.err}"


def test_other_programs_are_known() -> None:
    unknown = [
        str(command) for command in ALL if command.words[0] not in {"hybridrl", "make", "python", *OTHERS}
    ]
    assert not unknown


def test_make_targets_exist() -> None:
    words = {word for command in ALL if command.words[0] == "make" for word in command.words[1:]}
    named = {word for word in words if "=" not in word}  # others set variables
    assert named and named <= make_targets()


def test_modules_exist() -> None:
    named = {command.words[2] for command in ALL if command.words[:2] == ["python", "-m"]}
    assert not [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_exist(page: Path) -> None:
    assert not [name for name in sorted(named_files(page)) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_keys_exist(page: Path) -> None:
    unknown = [name for name in sorted(named_keys(page)) if not is_key(name)]
    assert not unknown, unknown


def is_key(dotted: str) -> bool:
    """A key, a section, or an option of a plug-in."""
    return any(is_key_of(root, dotted) for root in (Config, *KINDS.values()))


def is_key_of(root: type[BaseModel], dotted: str) -> bool:
    above = keys.find(dotted.rpartition(".")[0], root)
    takes_it = above is not None and above.section is not None and keys.takes_options(above.section)
    return takes_it or keys.find(dotted, root) is not None


CONFIGS = [pytest.param(page, text, id=page_name(page)) for page in PAGES for text in configs(page)]


@pytest.mark.parametrize(("page", "text"), CONFIGS)
def test_configs_load(page: Path, text: str, folder: Path) -> None:
    given = parse(text, page.name).tree
    kind = KINDS.get(page.stem, Config)
    missing = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in given]
    rest = [] if "model" in given and kind is not Config else missing
    (folder / "page.yaml").write_text("\n".join([*rest, text]) + "\n")
    load_as(kind, "page.yaml")
