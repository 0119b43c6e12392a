"""The commit record of a checkpoint: what it holds, and its files with their sizes. Imports no Megatron.

A folder is written under another name, flushed to disk, given its record, and renamed: it is whole, or it is
refused.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridrl.errors import CheckpointError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.hf_files import checksum

RECORD = "COMMITTED"

FORMAT = 2
"""1 had files that only the same number of ranks could read."""


def commit(unfinished: Path, folder: Path, facts: Mapping[str, Any], checksums: Mapping[str, int]) -> None:
    """Flush what is in `unfinished`, list it with `facts`, and rename it to `folder`, which is not there.

    Args:
        checksums: file -> CRC-32, as far as known.
    """
    paths = sorted(path for path in unfinished.rglob("*") if path.is_file())
    for path in paths:
        _flush(path)
    names = {str(path.relative_to(unfinished)): path for path in paths}
    files = {
        name: {"bytes": path.stat().st_size, "crc32": checksums.get(name)} for name, path in names.items()
    }
    record = {"format": FORMAT, **facts, "files": files}
    (unfinished / RECORD).write_text(json.dumps(record, indent=1))
    _flush(unfinished / RECORD)
    _flush(unfinished)
    unfinished.rename(folder)
    _flush(folder.parent)


def read(folder: Path) -> dict[str, Any]:
    """The record of a whole checkpoint, of any format.

    Raises:
        CheckpointError: it was cut short; names what is missing.
    """
    record = folder / RECORD
    if not record.is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD}", where="its writer was stopped", fix="resume from an earlier one"
        )
    facts = {"format": 1, **json.loads(record.read_text())}
    for name, of_file in facts["files"].items():
        size = of_file["bytes"] if isinstance(of_file, dict) else of_file
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"{path} {what}, {size} were written", fix="resume from an earlier checkpoint"
            )
    return facts


def verify(folder: Path) -> None:
    """Read every file of a whole checkpoint again.

    Raises:
        CheckpointError: one is not what was written.
    """
    for name, of_file in read(folder)["files"].items():
        if of_file["crc32"] is not None and checksum(folder / name) != of_file["crc32"]:
            raise CheckpointError(
                f"{folder / name} is damaged: its checksum is not that of what was written",
                fix="resume from an earlier checkpoint",
            )


def refuse_other_format(folder: Path, facts: Mapping[str, Any]) -> None:
    """
    Raises:
        CheckpointError: another version of hybridrl wrote it.
    """
    if facts["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {facts['format']}, this version of hybridrl reads {FORMAT}",
            fix="resume it with the version that wrote it",
        )


def layout(facts: Mapping[str, Any], part: str) -> MegatronLayout:
    """How the ranks were cut that wrote a part."""
    fields = dict(facts["parts"][part]["layout"])
    spec = ModelSpec(**_tuples(fields.pop("spec")))
    kind = AdapterLayout if "adapter_rank" in fields else MegatronLayout
    return kind(spec, **_tuples(fields))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
