"""Files that are there whole or not at all: written beside their place, then renamed over it."""

import json
import os
from pathlib import Path
from typing import Any


def atomic_write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, also after a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must be on disk too
    finally:
        os.close(folder)


def atomic_write_json(path: Path, value: Any) -> None:
    """Raises: ValueError if `value` holds a number that JSON has no word for (inf, NaN)."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
