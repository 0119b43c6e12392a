"""Finds data sets by their Hugging Face hub name in the local cache, or downloads them into it.

The hub keeps a copy in parquet of every data set, whatever its own files are, as SUBSET/SPLIT/0000.parquet
and so on. Those files are read; no code of a data set is run. The parts of a split are downloaded from the
last to the first, so that a copy that has the first is whole.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hybridrl.errors import DataError
from hybridrl.models import hub
from hybridrl.models.hub import Advance, bar

REVISION = "refs/convert/parquet"
"""Branch of the parquet copies."""

_PART = re.compile(r"(?P<subset>[^/]+)/(?P<split>[^/]+)/(?P<number>\d{4})\.parquet")
_PARTIAL = "partial-"
"""Begins the name of a split of which the hub has converted only the first 5 GB."""


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a data set of the hub."""

    name: str
    """As openai/gsm8k."""

    subset: str | None
    """None: the only one."""

    split: str

    def __str__(self) -> str:
        return f"{self.name} ({self.subset}, {self.split})" if self.subset else f"{self.name} ({self.split})"


def find(wanted: Split, *, where: str) -> list[Path] | None:
    """The files of a split in the cache, in order; None: it has none, or not all.

    Raises:
        DataError: no subset is given, and the cache has several.
    """
    snapshot = hub.snapshot(wanted.name, kind="datasets", revision=REVISION)
    if snapshot is None:
        return None
    files = sorted(str(path.relative_to(snapshot)) for path in snapshot.glob("*/*/*.parquet"))
    subsets = {wanted.subset} if wanted.subset else {file.split("/")[0] for file in files}
    here = [file for file in files if file.split("/")[0] in subsets and file.split("/")[1] == wanted.split]
    if not here:
        return None
    parts = _parts(here, wanted, where)
    is_whole = [int(Path(part).stem) for part in parts] == [*range(len(parts))]
    return [snapshot / part for part in parts] if is_whole else None


def fetch(wanted: Split, *, where: str, advance: Advance | None = None) -> list[Path]:
    """The files of a split, which are downloaded unless the cache has all of them.

    Args:
        where: the config key that names the data set, for the error.
        advance: gets files; None: the hub's library shows its own bars.

    Raises:
        DataError: the hub has no such data set, subset or split, refuses access or cannot be reached.
    """
    if found := find(wanted, where=where):
        return found
    from huggingface_hub import HfApi, hf_hub_download

    name, kind = wanted.name, "dataset"
    try:
        tree = HfApi().list_repo_tree(name, recursive=True, repo_type=kind, revision=REVISION)
        parts = _parts([entry.path for entry in tree], wanted, where)
        shown = {"tqdm_class": bar(lambda done, total: None)} if advance else {}
        local = list[Path]()
        for part in reversed(parts):
            local.append(Path(hf_hub_download(name, part, repo_type=kind, revision=REVISION, **shown)))
            if advance:
                advance(len(local), len(parts))
    except OSError as error:  # the hub's library raises OSErrors; so does a full disk
        raise _refused(wanted.name, error, where) from error
    return local[::-1]


def _parts(files: Iterable[str], wanted: Split, where: str) -> list[str]:
    """The files of a split among those of its data set."""
    found = [match for file in sorted(files) if (match := _PART.fullmatch(file))]
    subsets = sorted({match["subset"] for match in found})
    subset = wanted.subset or (subsets[0] if len(subsets) == 1 else None)
    if subset not in subsets:
        what = f"has no subset {subset}" if subset else "has several subsets, and none is named"
        raise _choose(f"{wanted.name} {what}", "subset", subsets, where)
    splits = sorted({match["split"] for match in found if match["subset"] == subset})
    if f"{_PARTIAL}{wanted.split}" in splits:
        raise DataError(
            f"the hub has only the first 5 GB of {wanted} in parquet",
            where=where,
            fix="write the rows that you need to a file, with dataset.to_parquet(), and give its path",
        )
    if wanted.split not in splits:
        raise _choose(f"{wanted.name} has no split {wanted.split}", "split", splits, where)
    return [match[0] for match in found if (match["subset"], match["split"]) == (subset, wanted.split)]


def _choose(what: str, option: str, known: list[str], where: str) -> DataError:
    some = f"{', '.join(known[:8])}{' ...' if known[8:] else ''}"
    fix = f"give {option}: one of {some}" if known else "the hub has no parquet copy of it: give a file"
    return DataError(what, where=where, fix=fix)


def _refused(name: str, error: OSError, where: str) -> DataError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        what = f"the hub gives the data set {name} only to those who accepted its terms"
        fix = f"accept them at https://huggingface.co/datasets/{name}, then hf auth login, or set HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"the hub has no data set {name}, or keeps it private"
        fix = "check the name; for a private one: hf auth login, or set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        what = f"the hub has no parquet copy of the data set {name}"
        fix = "write it to a file with dataset.to_parquet(), and give its path"
    else:
        what = f"the data set {name} is not on this machine and cannot be downloaded: {hub.reason(error)}"
        fix = (
            f"hf download {name} --repo-type dataset --revision {REVISION} where there is a network, with "
            "HF_HOME in a folder that this machine sees"
        )
    return DataError(what, where=where, fix=fix)
