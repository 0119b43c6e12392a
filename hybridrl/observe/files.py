"""Writes files that are complete or absent: under a temporary name in the same folder, then renamed."""

import json
import os
from pathlib import Path
from typing import Any


def atomic_write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must be on disk too
    finally:
        os.close(folder)


def atomic_write_json(path: Path, value: Any) -> None:
    """Raises: ValueError if `value` holds a number that JSON cannot express (inf, NaN)."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
