"""The example of docs/coming_from_verl.md is what the command prints and writes."""

import re
import textwrap
from pathlib import Path

import pytest

from hybridrl import cli

PAGE = Path(__file__).parents[2] / "docs/coming_from_verl.md"


def blocks() -> list[str]:
    """The indented blocks of the page."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", PAGE.read_text("utf-8"), re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") for block in found if block.strip()]


def test_the_example_is_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, call, written = blocks()
    command, _, said = call.partition("\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.sh").write_text(script)
    assert cli.main(command.split()[2:]) == 0
    assert capsys.readouterr().out.strip() == said
    assert (tmp_path / "run.yaml").read_text().strip() == written
