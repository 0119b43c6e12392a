"""Files that are there whole or not at all."""

import math
import os

import pytest

from hybridrl.observe.files import atomic_write, atomic_write_json


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
