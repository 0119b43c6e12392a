"""Writes model folders atomically: a folder appears complete or not at all."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a model into a temporary folder, then rename it. An existing folder stays as it is.

    Processes may do this at the same time; the first to finish wins. A process that is killed leaves a hidden
    folder `.<name>.*`, but never an incomplete model.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary, "model")  # `temporary` itself is readable only by its owner.
        made.mkdir()
        fill(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
