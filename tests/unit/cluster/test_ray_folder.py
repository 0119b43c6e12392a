"""Ray's folder has a short path, also where the path of TMPDIR is long, as on many clusters."""

from pathlib import Path

import pytest

from hybridrl.cluster.ray_local import make_folder
from hybridrl.errors import ResourceError


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path) -> None:
    long = tmp_path / ("scratch" * 5)
    long.mkdir()
    folder = Path(make_folder((str(long), "/tmp")))
    try:
        assert folder.parent == Path("/tmp") and folder.stat().st_mode & 0o777 == 0o700
        socket = folder / "session_2026-11-30_08-08-50_123456_4194304" / "sockets" / "plasma_store"
        assert len(str(socket)) <= 107
    finally:
        folder.rmdir()


def test_a_short_one_is_taken() -> None:
    folder = Path(make_folder(("/var/tmp", "/tmp")))
    folder.rmdir()
    assert folder.parent == Path("/var/tmp")


def test_where_no_place_is_short_the_error_says_so() -> None:
    with pytest.raises(ResourceError, match="TMPDIR = /a{60} has 61, and /absent cannot be written"):
        make_folder(("/" + "a" * 60, "/absent"))
