"""Writes files that are complete or absent: under a temporary name in the same folder, then renamed; and says
what stands at a path.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any


def atomic_write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, also after a power failure. The new one has the mode of the
    old, and the line ends of the text.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if path.exists():
                _keep_mode(path, file.fileno())
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where it is full
        raise
    finally:
        temporary.unlink(missing_ok=True)  # there only if the write failed
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must be on disk too
    finally:
        os.close(folder)


def atomic_write_json(path: Path, value: Any) -> None:
    """Raises: ValueError if `value` holds a number that JSON cannot express (inf, NaN)."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_there(path: Path) -> bool:
    """Whether anything is at a path; nothing is where the file system takes no such name or lets nobody
    see."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def file_kind(path: Path) -> str:
    """What is at a path: "a file", "a folder", "a pipe", "a socket" or "a device"."""
    kinds = (Path.is_file, "a file"), (Path.is_dir, "a folder"), (Path.is_fifo, "a pipe")
    kinds += ((Path.is_socket, "a socket"),)
    return next((kind for test, kind in kinds if test(path)), "a device")


def _keep_mode(old: Path, new: int) -> None:
    """Give an open file the mode of another; some file systems know no modes, and refuse to set one."""
    mode = stat.S_IMODE(old.stat().st_mode)
    if mode != stat.S_IMODE(os.fstat(new).st_mode):
        os.fchmod(new, mode)
