"""Data files by name: which kinds there are, and which files a pattern stands for."""

import difflib
import glob
from collections.abc import Iterator
from pathlib import Path

KINDS = (".jsonl", ".json", ".csv", ".parquet")
PACKED = ".gz"

NAMED = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
"""The kinds in a message."""


def kind_of(path: str) -> str | None:
    """The kind of a data file, without regard to case and packing; None: not one that is read."""
    found = next((kind for kind in KINDS if unpacked_name(path).lower().endswith(kind)), None)
    return None if found == ".parquet" and is_packed(path) else found


def is_packed(path: str) -> bool:
    return path.lower().endswith(PACKED)


def unpacked_name(path: str) -> str:
    return path[: -len(PACKED)] if is_packed(path) else path


def matched(path: str) -> list[str]:
    """The files that a path stands for: itself, or those that its pattern matches, in the order of their
    names."""
    if Path(path).is_file():
        return [path]
    return sorted(found for found in glob.glob(path, recursive=True) if Path(found).is_file())


def files_in(folder: Path) -> list[str]:
    """The data files of a folder."""
    return sorted(str(path) for path in _listed(folder) if kind_of(path.name) and path.is_file())


def nearest(path: str) -> str:
    """What to do about a path that stands for no file."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if Path(path).is_dir() and files_in(Path(path)):
        return f"give its files: {path.rstrip('/')}/*{_most_common(Path(path))}"
    if not glob.has_magic(str(folder)) and not folder.is_dir():
        return f"there is no folder {folder}"
    files = files_in(folder)
    near = difflib.get_close_matches(path, files, n=2, cutoff=0.4) or files[:3]
    return f"there is {', '.join(near)}" if near else f"{folder} has no {NAMED} file"


def _listed(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _most_common(folder: Path) -> str:
    suffixes = [
        path[len(Path(path).name.split(".")[0]) - len(Path(path).name) :] for path in files_in(folder)
    ]
    return max(suffixes, key=suffixes.count) if suffixes else KINDS[0]
