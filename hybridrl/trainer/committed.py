"""The commit record of a checkpoint: a list of its files with their sizes, written last. Imports no Megatron.

A folder is written under another name, flushed to disk, given its record, and renamed: it is whole, or it is
refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridrl.errors import CheckpointError

RECORD = "COMMITTED"


def commit(unfinished: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Flush what is in `unfinished`, list it with `facts`, and rename it to `folder`, which is not there."""
    paths = sorted(path for path in unfinished.rglob("*") if path.is_file())
    for path in paths:
        _flush(path)
    files = {str(path.relative_to(unfinished)): path.stat().st_size for path in paths}
    (unfinished / RECORD).write_text(json.dumps({**facts, "files": files}, indent=1))
    _flush(unfinished / RECORD)
    _flush(unfinished)
    unfinished.rename(folder)
    _flush(folder.parent)


def read(folder: Path) -> dict[str, Any]:
    """The facts of a whole checkpoint.

    Raises:
        CheckpointError: it was cut short; names what is missing.
    """
    record = folder / RECORD
    if not record.is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD}", where="its writer was stopped", fix="resume from an earlier one"
        )
    facts = json.loads(record.read_text())
    for name, size in facts.pop("files").items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"{path} {what}, {size} were written", fix="resume from an earlier checkpoint"
            )
    return facts


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
