"""The walk-throughs of the documentation, followed as they are written."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from documented import ROOT, commands, shown_files

DOCS = ROOT / "docs"


def run(folder: Path, words: list[str]) -> str:
    """Run a command as the page has it; its output.

    Raises:
        AssertionError: it failed.
    """
    program = [sys.executable, "-m", "hybridrl"] if words[0] == "hybridrl" else [sys.executable]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*program, *words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**_inherited(), **environment},
    )
    assert ended.returncode == 0, f"{' '.join(words)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def _inherited() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), [("walkthrough_grpo", "first"), ("walkthrough_ppo", "critic")])
def test_a_walkthrough_learns_what_it_shows(page: str, name: str, tmp_path: Path) -> None:
    path = DOCS / f"{page}.md"
    for file, content in shown_files(path).items():
        (tmp_path / file).write_text(content)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for command in commands(path):
        if not command.inline and not command.fails and command.words[0] in ("hybridrl", "python"):
            run(tmp_path, command.words)
    summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
    assert summary["heldout_before"] < 0.2 and summary["heldout_after"] > 0.8
    assert summary["swap_checksums_ok"] and summary["first_ratio_max_abs_err"] == 0
    assert (tmp_path / "runs" / name / "reward.png").exists()
