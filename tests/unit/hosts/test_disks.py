"""A write that found no room is told with the disk that is full."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from hybridrl.hosts import disks

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders with little room or much, one whose disk is full, and one that does not exist."""
    free = {tmp_path / "roomy": 1 << 30, tmp_path / "full": 4096, tmp_path / "nearly": 1 << 20}
    for folder in free:
        folder.mkdir()
    monkeypatch.setattr(disks.shutil, "disk_usage", lambda folder: Usage(1 << 31, 0, free[folder]))
    return [tmp_path / "absent", *free]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_full_one_is_named(folders: list[Path], number: int) -> None:
    found = disks.full_disk(OSError(number, os.strerror(number)), folders)
    assert found is not None and found.exit_code == 2
    assert found.what == f"the disk of {folders[2]} is full: {os.strerror(number)}"
    assert "--resume" in found.fix


def test_other_errors_and_disks_with_room_are_left_as_they_are(folders: list[Path]) -> None:
    assert disks.full_disk(OSError(errno.EACCES, "no"), folders) is None
    assert disks.full_disk(OSError(errno.ENOSPC, "no room"), folders[:2]) is None
