"""Programs that nobody trusts, in every kind of box, as root and as a user: each attempt is refused and says
so, and nothing is left running."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attack_list import ATTACKS, FILLS_THE_DISK, PASSES_A_LIMIT, PASSES_IN_BUBBLEWRAP

HERE = Path(__file__).parent
KINDS = ("bubblewrap", "landlock")
USER = "54321"
"""A user id that no other test takes."""

AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
SYSTEM_PYTHON = "/usr/bin/python3"
WHO = ("root", "user") if os.geteuid() == 0 else ("user",)


@cache
def report(kind, who):
    """What the attacker reports, once for all tests."""
    command = [sys.executable]
    if os.geteuid() == 0 and who == "user":
        if not (shutil.which("setpriv") and Path(SYSTEM_PYTHON).exists()):
            return "no setpriv, or no Python that another user can read"
        command = [*AS_USER, SYSTEM_PYTHON]
    paths = [str(HERE.parents[2]), *(p for p in sys.path if p.endswith("site-packages"))]
    environment = {"PYTHONPATH": ":".join(paths), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, str(HERE / "attacker.py"), kind],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def found(kind, who):
    one = report(kind, who)
    refusals = ("SandboxError", "No module named", "Permission denied", "no setpriv")
    if isinstance(one, str) and who == "user" and any(refusal in one for refusal in refusals):
        pytest.skip(f"another user cannot make a box here: {one.strip().splitlines()[-1]}")
    if isinstance(one, str):
        pytest.fail(one)
    return one


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*ATTACKS, *FILLS_THE_DISK])
def test_an_attack_is_refused_and_says_so(kind, who, name):
    result = found(kind, who)["results"][name]
    assert "ESCAPED" not in result["text"], result
    assert result["text"], "nothing says what refused it"
    assert result["serves on"] == "42", result


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_that_is_passed_ends_the_program_and_is_named(kind, who):
    results = found(kind, who)["results"]
    limits = PASSES_A_LIMIT | (PASSES_IN_BUBBLEWRAP if kind == "bubblewrap" else {})
    for name, (_, _, limit) in limits.items():
        assert (results[name]["ended"], results[name]["serves on"]) == (limit, "42"), (name, results[name])


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_was_touched_and_nothing_is_left(kind, who):
    one = found(kind, who)
    assert one["sibling"] == "42" and one["bystander"]
    assert one["open_file"] == "as it was" and one["open_folder"] == ["file"]
    assert (one["received"], one["left"], one["folders"]) == ("", [], [])
