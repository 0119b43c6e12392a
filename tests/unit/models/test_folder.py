"""A model folder is whole or absent."""

import pytest

from hybridrl.models.folder import write_once


def test_a_folder_appears_when_it_is_filled(tmp_path):
    target = tmp_path / "new" / "model"

    def fill(folder):
        (folder / "a").write_text("1")
        assert not target.exists()

    write_once(target, fill)
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_failure_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "a").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_once(tmp_path / "model", fill)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path):
    write_once(tmp_path / "model", lambda folder: (folder / "a").write_text("1"))
    write_once(tmp_path / "model", lambda folder: (folder / "a").write_text("2"))
    assert (tmp_path / "model" / "a").read_text() == "1"


def test_the_first_of_two_writers_wins(tmp_path):
    def fill_while_another_finishes(folder):
        write_once(tmp_path / "model", lambda other: (other / "a").write_text("first"))
        (folder / "a").write_text("second")

    write_once(tmp_path / "model", fill_while_another_finishes)
    assert (tmp_path / "model" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
