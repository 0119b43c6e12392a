"""What people get wrong is refused with exit code 2 and one clear line for each mistake, at once, and leaves
everything as it was."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_folders import CODE, COMMANDS, MODELS, NUMBERS, PLACES, REWARDS
from bad_inputs import CONFIGS, DRY, OVERRIDES, ROWS, Bad, write_folder

from hybridrl import cli
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.models import tiny

KINDS = {
    "config": CONFIGS,
    "override": OVERRIDES,
    "row": ROWS,
    "model": MODELS,
    "code": CODE,
    "reward": REWARDS,
    "number": NUMBERS,
    "place": PLACES,
    "command": COMMANDS,
}
INPUTS = {f"{kind}: {name}": bad for kind, found in KINDS.items() for name, bad in found.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; what takes long to import is imported with it."""
    import torch  # noqa: F401

    folder = tmp_path_factory.mktemp("models") / "model"
    tiny.qwen3_arithmetic(folder, 0)
    load_tokenizer(str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_folder(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    sys.modules.pop("own", None)


def files(folder: Path) -> dict[str, bytes]:
    """Every file and its content; folders, links and pipes by their names."""
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        for path in folder.rglob("*")
    }


def test_the_folder_itself_is_in_order(folder: Path) -> None:
    """So what is refused below is refused for what is wrong with it."""
    assert cli.main([*DRY]) == 0
    assert cli.main(["sft", "sft.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("bad", INPUTS.values(), ids=INPUTS)
def test_it_is_refused_at_once_in_one_line_and_nothing_is_touched(
    folder: Path, capfd: pytest.CaptureFixture[str], bad: Bad
) -> None:
    bad.change(folder)
    before, since = files(folder), time.process_time()
    code = cli.main([*bad.arguments])
    took_s = time.process_time() - since
    said = capfd.readouterr().err
    assert code == 2, said
    assert all(line.startswith("error: ") for line in said.splitlines()), said
    assert bad.said in said
    assert not any(word in said for word in ("Traceback", "hybridrl itself", "typing.", "NoneType"))
    assert len(max(said.splitlines(), key=len)) < 700 + len(os.getcwd())
    assert took_s < 5
    assert files(folder) == before
