"""The commit record of a checkpoint: what it holds, and its files with their checksums. Takes no ranks.

A folder is written under another name, flushed to disk, given its record, and renamed: it is whole, or it is
refused. The record has a checksum of itself too.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hybridrl.config.training import ActorConfig
from hybridrl.errors import CheckpointError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.hf_files import checksum

RECORD = "COMMITTED"

FORMAT = 2
"""1 had files that only the same number of ranks could read."""


_THREADS = 16
"""Files that one process reads at once: many disks, and file systems over a network, need several to be
fast."""

_MOST_NAMED = 8
"""Damaged files of one checkpoint that an error names."""


def commit(unfinished: Path, folder: Path, facts: Mapping[str, Any], checksums: Mapping[str, int]) -> None:
    """Flush what is in `unfinished`, list it with `facts`, and rename it to `folder`, which is not there.

    Args:
        checksums: file -> CRC-32 of what was written, read back by who wrote it. Other files are read here.

    Raises:
        CheckpointError: a file with a checksum is not there, or the record reads back otherwise than it was
            written; nothing was renamed.
    """
    paths = sorted(path for path in unfinished.rglob("*") if path.is_file())
    for path in paths:
        _flush(path)
    names = {str(path.relative_to(unfinished)): path for path in paths}
    if lost := sorted(checksums.keys() - names.keys()):
        raise CheckpointError(f"{', '.join(lost)} went missing while it was written", where=str(unfinished))
    known = {name: checksums[name] if name in checksums else checksum(path) for name, path in names.items()}
    files = {name: {"bytes": path.stat().st_size, "crc32": known[name]} for name, path in names.items()}
    record = json.loads(json.dumps({"format": FORMAT, **facts, "files": files}))
    (unfinished / RECORD).write_text(json.dumps({**record, _OWN: _checksum_of(record)}, indent=1))
    _flush(unfinished / RECORD)
    read(unfinished)
    _flush(unfinished)
    unfinished.rename(folder)
    _flush(folder.parent)


def read(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint of any format whose files are all there with their sizes.

    Raises:
        CheckpointError: it was cut short, or its record is damaged; names each file.
    """
    facts = _record(folder)
    refuse_flawed(folder, [flaw for name in facts["files"] if (flaw := _size_flaw(folder, name, facts))])
    return facts


def verify(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint whose files are what was written. Reads all of them, several at once and
    in blocks: 5 GB/s for each core where the system has them in memory, else as fast as the disk.

    Raises:
        CheckpointError: as `read`, or a file is damaged; names each file.
    """
    facts = read(folder)
    refuse_flawed(folder, flaws(folder, facts))
    return facts


def flaws(folder: Path, facts: Mapping[str, Any], *, rank: int = 0, num_ranks: int = 1) -> list[str]:
    """What is wrong with files of the right size: one sentence for each that is not what was written.

    Args:
        facts: its record.
        rank, num_ranks: of those who share the reading; a rank finds what is wrong with its share.
    """
    names = sorted(facts["files"])[rank::num_ranks]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _content_flaw(folder, name, facts), names)
        return [flaw for flaw in found if flaw]


def refuse_flawed(folder: Path, found: Sequence[str]) -> None:
    """
    Raises:
        CheckpointError: something is wrong with files of a checkpoint.
    """
    if found:
        more = f"; and {len(found) - _MOST_NAMED} more files" if len(found) > _MOST_NAMED else ""
        raise CheckpointError(
            "; ".join(found[:_MOST_NAMED]) + more, where=str(folder), fix="use an earlier checkpoint"
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


def layout_record(layout: TrainerLayout | AdapterLayout) -> dict[str, Any]:
    """What `layout` takes; JSON."""
    if isinstance(layout, TrainerLayout):
        return asdict(layout)
    return asdict(layout.base) | {f"adapter_{name}": getattr(layout, name) for name in _ADAPTERS}


def refuse_other_model(folder: Path, facts: Mapping[str, Any], model: ModelSpec) -> None:
    """
    Args:
        model: that the policy is to be.

    Raises:
        CheckpointError: the policy of the checkpoint is another; names what differs, with both values.
    """
    made_with = layout(facts, "policy").spec
    values = {f.name: (getattr(made_with, f.name), getattr(model, f.name)) for f in fields(ModelSpec)}
    different = [
        f"{name} is {then!r} there, {now!r} here" for name, (then, now) in values.items() if then != now
    ]
    if different:
        raise CheckpointError(
            f"{folder} holds another model than that of model.path: {', '.join(different)}",
            where="model.path",
            fix="use model.path as it was, or run.name=... starts another run",
        )


def layout(facts: Mapping[str, Any], part: str) -> TrainerLayout | AdapterLayout:
    """The layout of the ranks that wrote a part."""
    fields = dict(facts["parts"][part]["layout"])
    spec = ModelSpec(**_tuples(fields.pop("spec")))
    adapters = {name: fields.pop(f"adapter_{name}") for name in _ADAPTERS if f"adapter_{name}" in fields}
    backend = facts.get("backend") or ActorConfig().backend  # a record of before there was a choice
    base = layout_of(backend)(spec, **_tuples(fields))
    return AdapterLayout.on(base, **_tuples(adapters)) if adapters else base


_ADAPTERS = ("rank", "alpha", "targets")


_OWN = "record_crc32"
"""In the record: checksum of the rest of it. Older records have none."""


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD}", where="its writer was stopped", fix="use an earlier checkpoint"
        )
    try:
        record = json.loads(path.read_bytes())
        own = record.pop(_OWN, None)
        whole = own in (None, _checksum_of(record)) and isinstance(record["files"], dict)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", fix="use an earlier checkpoint") from error
    if not whole:
        raise CheckpointError(
            f"{path} is damaged: its checksum is not that of what was written",
            fix="use an earlier checkpoint",
        )
    return {"format": 1, **record}


def _checksum_of(record: Mapping[str, Any]) -> int:
    """The same however its JSON is laid out."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _size_flaw(folder: Path, name: str, facts: Mapping[str, Any]) -> str | None:
    of_file, path = facts["files"][name], folder / name
    size = of_file["bytes"] if isinstance(of_file, dict) else of_file
    if not path.is_file():
        return f"{path} is missing, {size} bytes were written"
    found = path.stat().st_size
    return None if found == size else f"{path} has {found} bytes, {size} were written"


def _content_flaw(folder: Path, name: str, facts: Mapping[str, Any]) -> str | None:
    of_file, path = facts["files"][name], folder / name
    expected = of_file["crc32"] if isinstance(of_file, dict) else None
    try:
        if expected is None or checksum(path) == expected:
            return None
    except OSError as error:
        return f"{path} is damaged: {error.strerror}"
    return f"{path} is damaged: its checksum is not that of what was written"


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
