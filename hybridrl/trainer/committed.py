"""The commit record of a checkpoint: its contents, and its files with their checksums. No ranks are needed.

A checkpoint is written under another name, flushed to disk, given its record, and renamed. So a folder is
either complete or refused. The record also has a checksum of itself.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from hybridrl.config.training import ActorConfig
from hybridrl.errors import CheckpointError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.trainers import TrainerLayout, layout_of
from hybridrl.models.spec import ModelSpec
from hybridrl.models.vision import VisionSpec
from hybridrl.reshard.hf_files import checksum
from hybridrl.wording import json_fault

RECORD = "COMMITTED"

FORMAT = 2
"""Version of the file format. Files of format 1 could only be read by the same number of ranks."""

_THREADS = 16
"""Files that one process reads at once; many disks and network file systems are fast only in parallel."""

_MOST_NAMED = 8
"""Largest number of damaged files that one error names."""


def commit(unfinished: Path, folder: Path, facts: Mapping[str, Any], checksums: Mapping[str, int]) -> None:
    """Flush the files of `unfinished`, write the commit record, and rename the folder to `folder`.

    `folder` must not exist.

    Args:
        facts: entries of the record.
        checksums: file -> CRC-32 that its writer computed by reading it back. Other files are read here.

    Raises:
        CheckpointError: a file of `checksums` is missing, or the record that was read back is not the one
            that was written; nothing was renamed.
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
    """The record of a checkpoint of any format, after a check that all files exist with their sizes.

    Raises:
        CheckpointError: a file is missing or has another size (the message names each one), or the record is
            missing or damaged.
    """
    facts = _record(folder)
    refuse_flawed(folder, [flaw for name in facts["files"] if (flaw := _size_flaw(folder, name, facts))])
    return facts


def verify(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint, after a check of the contents of all files.

    Files are read in blocks, several at once: at 5 GB/s per core if they are in the page cache, otherwise at
    the speed of the disk.

    Raises:
        CheckpointError: as for `read`, or files are damaged; the message names each one.
    """
    facts = read(folder)
    refuse_flawed(folder, flaws(folder, facts))
    return facts


def flaws(folder: Path, facts: Mapping[str, Any], *, rank: int = 0, num_ranks: int = 1) -> list[str]:
    """One sentence for each file whose contents do not match its checksum; sizes are not checked.

    Args:
        facts: the commit record.
        rank, num_ranks: the files are divided over `num_ranks`, and only the share of `rank` is checked.
    """
    names = sorted(facts["files"])[rank::num_ranks]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda name: _content_flaw(folder, name, facts), names)
        return [flaw for flaw in found if flaw]


def refuse_flawed(folder: Path, found: Sequence[str]) -> None:
    """Raise an error about damaged files, if there are any.

    Raises:
        CheckpointError: `found` is not empty.
    """
    if found:
        more = f"; and {len(found) - _MOST_NAMED} more files" if len(found) > _MOST_NAMED else ""
        raise CheckpointError(
            "; ".join(found[:_MOST_NAMED]) + more, where=str(folder), fix="use an earlier checkpoint"
        )


def refuse_other_format(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another file format.

    Raises:
        CheckpointError: an incompatible version of hybridrl wrote it.
    """
    if facts["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {facts['format']}, this version of hybridrl reads {FORMAT}",
            fix="resume it with the version that wrote it",
        )


def layout_record(layout: TrainerLayout | AdapterLayout) -> dict[str, Any]:
    """The record of a layout, from which `layout` makes it again; JSON."""
    if isinstance(layout, TrainerLayout):
        return asdict(layout)
    return asdict(layout.base) | {f"adapter_{name}": getattr(layout, name) for name in _ADAPTERS}


def refuse_other_model(folder: Path, facts: Mapping[str, Any], model: ModelSpec) -> None:
    """Refuse a checkpoint of another model.

    Args:
        model: the policy of this run.

    Raises:
        CheckpointError: the checkpoint has another policy; the message has each difference with both values.
    """
    made_with = layout(facts, "policy").spec
    values = {f.name: (getattr(made_with, f.name), getattr(model, f.name)) for f in fields(ModelSpec)}
    values |= _different_tensors(*values.pop("tensors"))
    different = [
        f"{name} is {then!r} there, {now!r} here" for name, (then, now) in values.items() if then != now
    ]
    if different:
        raise CheckpointError(
            f"{folder} holds another model than that of model.path: {', '.join(different)}",
            where="model.path",
            fix="use model.path as it was, or run.name=... starts another run",
        )


def _different_tensors(there: Sequence[Any], here: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> shapes there and here of the first tensors of a model without a table that differ."""
    then, now = dict(there), dict(here)
    different = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return {name: (then.get(name), now.get(name)) for name in different[:_MOST_NAMED]}


def layout(facts: Mapping[str, Any], part: str) -> TrainerLayout | AdapterLayout:
    """Layout of the ranks that wrote a part.

    Raises:
        CheckpointError: the record has no layout that can be read.
    """
    try:
        return _layout(facts, part)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint is damaged: its {RECORD} has no layout of its {part}",
            fix="use an earlier checkpoint",
        ) from error


def _layout(facts: Mapping[str, Any], part: str) -> TrainerLayout | AdapterLayout:
    fields = dict(facts["parts"][part]["layout"])
    own = _tuples(fields.pop("spec"))
    tower = own.pop("vision", None)  # older records have none
    spec = replace(ModelSpec(**own), vision=VisionSpec(**_tuples(tower)) if tower else None)
    adapters = {name: fields.pop(f"adapter_{name}") for name in _ADAPTERS if f"adapter_{name}" in fields}
    backend = facts.get("backend") or ActorConfig().backend  # older records do not name the backend
    base = layout_of(backend)(spec, **_tuples(fields))
    return AdapterLayout.on(base, **_tuples(adapters)) if adapters else base


_ADAPTERS = ("rank", "alpha", "targets")


_OWN = "record_crc32"
"""Key of the record's own checksum, which covers all other entries. Older records have none."""


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {RECORD}", where="its writer was stopped", fix="use an earlier checkpoint"
        )
    try:
        record = json.loads(path.read_bytes())
        own = record.pop(_OWN, None)
        has_sizes = all(map(_has_size, record["files"].values()))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON: {json_fault(error)}") from error
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, "it is not what a commit writes") from error
    if not has_sizes:
        raise _damaged(path, "it is not what a commit writes")
    if own not in (None, _checksum_of(record)):
        raise _damaged(path, "its checksum is not that of what was written")
    return {"format": 1, **record}


def _has_size(of_file: Any) -> bool:
    return isinstance(of_file["bytes"] if isinstance(of_file, dict) else of_file, int)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}", fix="use an earlier checkpoint")


def _checksum_of(record: Mapping[str, Any]) -> int:
    """CRC-32 of a record, independent of the order and white space of its JSON."""
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
    """The fields with tuples in place of lists, which is what JSON makes of tuples."""
    return {key: _tuple(value) for key, value in fields.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
