"""A program that could not be started is refused before the run."""

import pytest

from hybridrl.config.program import ProgramConfig
from hybridrl.launch.program_check import unfit_program, unsafe_endpoint


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
