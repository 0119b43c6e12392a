"""An interpreter of another environment imports this hybridrl, and no other package of this environment."""

import os
import sys
from pathlib import Path

import hybridrl
from hybridrl.hosts.interpreter import environment_of


def test_another_interpreter_gets_the_package_alone_and_the_users_folders(tmp_path, monkeypatch) -> None:
    beside = str(Path(sys.prefix) / "lib/site-packages")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/users/code", beside]))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    found = environment_of("/other/bin/python", str(tmp_path))
    project, *rest = found["PYTHONPATH"].split(os.pathsep)
    assert os.listdir(project) == ["hybridrl"] and rest == ["/users/code"]
    assert Path(project, "hybridrl").resolve() == Path(hybridrl.__file__).resolve().parent
    assert "VIRTUAL_ENV" not in found


def test_this_interpreter_gets_the_folder_of_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/users/code")
    found = environment_of(sys.executable, str(tmp_path))
    assert found["PYTHONPATH"].split(os.pathsep) == [str(Path(hybridrl.__file__).parents[1]), "/users/code"]
    assert not list(tmp_path.iterdir())
