"""The kit for a machine with one GPU: what its archives are made of is pinned, and a CPU can rehearse it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.hosts.facts import parse_pins

ROOT = Path(__file__).parents[2]
KIT = ROOT / "tests/gpu/kit"


@pytest.mark.parametrize("archive", ["first", "second"])
def test_every_package_of_an_archive_is_pinned(archive: str) -> None:
    found = re.search(rf"^{archive}=\((.*?)\)", (KIT / "build").read_text(), re.MULTILINE | re.DOTALL)
    lists = (ROOT / f"requirements/{name}.txt" for name in ("gpu", "dev"))
    pins = {name for file in lists for name in parse_pins(file.read_text())}
    assert found and set(found[1].split()) <= pins


def test_an_unknown_stage_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run([sys.executable, KIT / "kit.py", "kernel"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no stage kernel; there are facts, kernels" in done.stderr


@pytest.mark.slow
def test_a_cpu_rehearses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    done = subprocess.run([sys.executable, KIT / "kit.py", "--rehearse"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" passed ") == 4
