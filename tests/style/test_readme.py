"""Every command that the README shows exists."""

import re
from pathlib import Path

import typer

from hybridrl.cli import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

_CODE = re.compile(r"```.*?```|`[^`\n]+`|^ {4}.+?$", re.DOTALL | re.MULTILINE)
_TARGET = re.compile(r"\bmake ((?:[a-z-]+ ?)+)")
_COMMAND = re.compile(r"\bhybridrl ([a-z]+)(?: ([a-z]+))?")
_FILE = re.compile(r"(?:configs|docs|benchmarks|launchers)/[\w./-]+\.\w+")


def code() -> str:
    """What the README shows as code."""
    return "\n".join(_CODE.findall(README.read_text("utf-8")))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def commands() -> dict[str, set[str]]:
    """Command -> its subcommands."""
    tree = typer.main.get_command(app)
    return {name: set(getattr(command, "commands", ())) for name, command in tree.commands.items()}


def test_the_readme_says_how_to_begin() -> None:
    assert "make quickstart" in code()


def test_make_targets_exist() -> None:
    named = {word for match in _TARGET.findall(code()) for word in match.split()}
    assert named <= targets()


def test_commands_exist() -> None:
    known, faults = commands(), []
    for name, inner in _COMMAND.findall(code()):
        if name not in known or (known[name] and inner not in known[name]):
            faults.append(f"hybridrl {name} {inner}".strip())
    assert not faults, faults


def test_files_exist() -> None:
    missing = [name for name in _FILE.findall(README.read_text("utf-8")) if not (ROOT / name).exists()]
    assert not missing, missing
