"""Files that are there whole or not at all."""

import math
import os
import stat

import pytest

from hybridrl.config.files import atomic_write, atomic_write_json


def test_the_new_file_takes_the_place_of_the_old(tmp_path) -> None:
    path = tmp_path / "summary.json"
    atomic_write_json(path, {"steps": 1})
    atomic_write_json(path, {"steps": 2, "é": None})
    assert path.read_text("utf-8") == '{\n  "steps": 2,\n  "é": null\n}\n'
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, "old")
    with pytest.raises(ValueError):
        atomic_write_json(path, {"loss": math.nan})
    assert path.read_text() == "old"


def test_a_write_that_fails_leaves_no_file_of_its_own(tmp_path) -> None:
    path = tmp_path / "my.yaml"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["my.yaml"]


def test_the_mode_and_the_line_ends_stay(tmp_path) -> None:
    path = tmp_path / "my.yaml"
    atomic_write(path, "old")
    path.chmod(0o640)
    atomic_write(path, "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
