"""The variables of a process that runs code of others."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from hybridrl.errors import ConfigError
from hybridrl.hosts.variables import BASE, child_environment, is_withheld

PAGE = Path(__file__).parents[3] / "docs/own_reward.md"


def test_the_page_lists_the_base():
    shown = PAGE.read_text("utf-8").partition("A documented base always passes:")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", shown) == list(BASE)


def test_what_is_neither_in_the_base_nor_listed_stays_out(monkeypatch):
    monkeypatch.setenv("LAB_KEY", "key")
    assert "LAB_KEY" not in child_environment([], key="reward.variables")
    assert child_environment(["LAB_KEY"], key="reward.variables")["LAB_KEY"] == "key"
    assert is_withheld("LAB_KEY", []) and not is_withheld("LAB_KEY", ["LAB_KEY"])
    assert not is_withheld("PATH", []) and not is_withheld("LAB_ABSENT", [])


def test_a_variable_that_is_not_set_is_refused():
    with pytest.raises(ConfigError, match="environment.variables lists LAB_ABSENT, which is not set"):
        child_environment(["LAB_ABSENT"], key="environment.variables", where="my.yaml:3")


@pytest.mark.parametrize("path", ["/usr/bin:/bin", None])
def test_python_is_the_one_that_has_the_packages(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    found = child_environment([], key="program.variables")["PATH"]
    own = os.path.dirname(sys.executable)
    assert found == f"{own}:{path or os.defpath}"
    assert shutil.which("python", path=found) == os.path.join(own, "python")
    monkeypatch.setenv("PATH", found)
    assert child_environment([], key="program.variables")["PATH"] == found
