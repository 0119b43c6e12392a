"""A program that could not be started is refused before the run."""

import pytest
from box_kinds import need

from hybridrl.config.program import ProgramConfig
from hybridrl.launch import program_check
from hybridrl.launch.program_check import unfit_box, unfit_program, unsafe_endpoint
from hybridrl.sandbox import local
from hybridrl.sandbox.support import Support


@pytest.fixture
def errors(tmp_path):
    (tmp_path / "agent.py").write_text("")

    def run(*command, **keys):
        given = {"command": list(command), "folder": str(tmp_path), **keys}
        return [str(error) for error in unfit_program(ProgramConfig.model_validate(given))]

    return run


def test_a_program_that_is_there_is_fit(errors):
    assert errors("sh", "-c", "true") == errors("python3", "agent.py", "{question}") == []


def test_what_is_missing_is_named(errors, tmp_path):
    assert "there is no pyhton" in errors("pyhton", "agent.py")[0]
    assert "there is no ./run" in errors("./run")[0]
    assert f"names agnet.py, which is not in {tmp_path}" in errors("python3", "agnet.py")[0]
    assert "is no folder" in errors("sh", folder=str(tmp_path / "absent"))[0]
    assert "program.variables lists ABSENT_X, which is not set" in errors("sh", variables=["ABSENT_X"])[0]
    tls = {"certificate": str(tmp_path / "agent.py"), "key": str(tmp_path / "k.pem")}
    (only,) = errors("sh", host="0.0.0.0", tls=tls)
    assert "program.tls.key" in only


@pytest.mark.parametrize(
    ("keys", "is_safe"),
    [
        ({}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "trusted_network": True}, True),
        ({"host": "10.0.0.1", "tls": {"certificate": "c.pem", "key": "k.pem"}}, True),
    ],
)
def test_plain_http_stays_on_loopback_or_in_a_trusted_network(keys, is_safe):
    program = ProgramConfig.model_validate({"command": ["sh"], **keys})
    found = [str(error) for error in unsafe_endpoint(program)]
    assert bool(found) != is_safe and all("is not loopback" in one for one in found)


def test_a_certificate_without_its_key_is_refused(errors, tmp_path):
    (tmp_path / "c.pem").write_text("nothing")
    tls = {"certificate": str(tmp_path / "c.pem"), "key": str(tmp_path / "c.pem")}
    (only,) = errors("sh", tls=tls)
    assert "program.tls.key" in only and "cannot be used" in only


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folder": "agents"}, None),
        ({}, "program.folder names none"),
        ({"folder": "agents", "episodes_per_process": 4}, "program.episodes_per_process = 4"),
        ({"box": False, "episodes_per_process": 4}, None),
    ],
)
def test_a_box_has_a_folder_and_one_episode(keys, message):
    program = ProgramConfig.model_validate({"command": ["sh"], "box": True, **keys})
    found = [str(error) for error in unfit_box(program)]
    assert len(found) == bool(message) and all(message in one for one in found)


def test_a_folder_that_a_box_could_not_read_is_refused(errors, tmp_path, monkeypatch):
    monkeypatch.setattr(program_check, "is_privileged", lambda: True)
    need("bubblewrap")
    tmp_path.chmod(0o755)
    assert errors("sh", box=True) == []
    tmp_path.chmod(0o700)
    (only,) = errors("sh", box=True)
    assert f"program.folder = {tmp_path} has mode 700" in only and f"chmod o+rx {tmp_path}" in only


def test_a_machine_that_can_make_no_box_is_refused(errors, tmp_path, monkeypatch):
    async def nothing():
        return Support(None, "bubblewrap: no namespaces", fix="allow them")

    tmp_path.chmod(0o755)
    monkeypatch.setattr(local, "inspect", nothing)
    (only,) = errors("sh", box=True)
    assert "program.box asks for a box" in only and "no namespaces" in only
