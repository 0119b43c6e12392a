"""Every command's help: examples that parse, flags without a type, and lines that fit a terminal."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_tree import commands, parsed

from hybridrl import cli

ROOT = Path(__file__).parents[3]
COMMANDS = dict(commands())
Captured = pytest.CaptureFixture[str]


def name(path: tuple[str, ...]) -> str:
    return " ".join(("hybridrl", *path))


every_command = pytest.mark.parametrize("path", COMMANDS, ids=name)


def examples(command: Any) -> list[str]:
    return [line.removeprefix("$ ") for line in command.epilog.splitlines() if line.startswith("$ ")]


def help_of(path: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main([*path, "--help"]) == 0
    return capsys.readouterr().out


def words(text: str) -> set[str]:
    return set(re.sub("[─│╭╮╰╯]", " ", text).split())


@every_command
def test_a_help_has_one_to_three_examples(path: tuple[str, ...]) -> None:
    found = examples(COMMANDS[path])
    assert 1 <= len(found) <= 3
    assert all(line.startswith(name(path)) for line in found)


@pytest.mark.parametrize("line", [line for command in COMMANDS.values() for line in examples(command)])
def test_examples_parse_and_their_configs_exist(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path, given = parsed(shlex.split(line.partition(" > ")[0])[1:])
    assert tuple(path) in COMMANDS and path
    files = given.get("files") or filter(None, [given.get("config")])
    assert all(Path(str(file)).is_file() for file in files), given
    assert all("=" in override for override in given.get("overrides") or [])


@every_command
def test_a_help_fits_80_columns(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    narrow = help_of(path, 80, monkeypatch, capsys)
    assert max(map(len, narrow.splitlines())) <= 80
    assert words(narrow) == words(help_of(path, 200, monkeypatch, capsys)), "a word is broken"


@every_command
def test_a_flag_has_no_type(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    said = help_of(path, 80, monkeypatch, capsys)
    assert "--help" in said and "bool" not in said.lower()


def test_completion_is_offered(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    said = help_of((), 80, monkeypatch, capsys)
    assert "--install-completion" in said and "--show-completion" in said
