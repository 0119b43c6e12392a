"""Finds models by their Hugging Face hub name in the local cache, or downloads them into it.

The cache is the one that all programs share (HF_HOME, HF_HUB_CACHE). HF_HUB_OFFLINE=1 forbids any request. A
complete copy in the cache is used without asking the hub, so a model does not change between two launches.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridrl.errors import ModelError
from hybridrl.models import spec
from hybridrl.models.published import read_published

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SKIPPED_FILES = ("original/*", "consolidated*", "*/*.safetensors")
"""Files that hold the same weights again in their authors' format."""


def is_name(path: str) -> bool:
    """Whether a path has the form ORGANISATION/MODEL of the hub and is not a local folder."""
    return _NAME.fullmatch(path) is not None and not Path(path).is_dir()


def find_folder(path: str) -> Path | None:
    """The local folder of a model: the given folder, or the complete copy in the cache of a hub name."""
    if Path(path).is_dir():
        return Path(path)
    found = snapshot(path) if is_name(path) else None
    return found if found and _is_whole(found) else None


def find_spec(path: str) -> spec.ModelSpec | None:
    """The spec of a model without a download: from its folder, our table of published models, or the cache.

    Raises:
        ModelError: no model table describes the model in the config.json that was found.
    """
    if folder := find_folder(path):
        return spec.read(folder)
    if not is_name(path):
        return None
    if published := read_published(path):
        return published
    found = snapshot(path)
    return spec.read(found) if found and (found / "config.json").is_file() else None


def fetch_spec(name: str, *, where: str) -> spec.ModelSpec:
    """The spec of a model from its config.json on the hub (a few kB), or in the cache if it is there.

    Args:
        where: the config key that names the model, for the error.

    Raises:
        ModelError: the hub has no such model, refuses access or cannot be reached; or no model table
            describes it.
    """
    from huggingface_hub import hf_hub_download

    found = snapshot(name)
    if found and (found / "config.json").is_file():
        return spec.read(found)
    try:
        return spec.read(Path(hf_hub_download(name, "config.json")).parent)
    except OSError as error:  # The hub's library raises OSErrors; so does a full disk.
        raise _refused(name, error, where) from error


Advance = Callable[[float, float | None], None]
"""Gets how much of a download is here, and how much it is in all."""


def fetch(name: str, *, where: str, advance: Advance | None = None) -> Path:
    """The folder of a hub model, which is downloaded unless the cache has a complete copy.

    Only weights in safetensors, the tokenizer and configs are downloaded; no code is.

    Args:
        advance: gets bytes; None: the hub's library shows its own bars.

    Raises:
        ModelError: as fetch_spec(), or the hub's copy lacks weights in safetensors.
    """
    if folder := find_folder(name):
        return folder
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name,
                allow_patterns=list(_FILES),
                ignore_patterns=list(_SKIPPED_FILES),
                tqdm_class=bar(advance) if advance else None,
            )
        )
    except OSError as error:
        raise _refused(name, error, where) from error
    if not _is_whole(folder):
        raise ModelError(
            f"the hub's {name} is incomplete in {folder}: config.json and safetensors weights are needed",
            where=where,
            fix="launch with a network, or use a model that is published as safetensors",
        )
    return folder


def bar(advance: Advance) -> Any:
    """A class for the bars of the hub's library that shows nothing, and hands on the bytes that are here."""
    from huggingface_hub.utils import tqdm

    class Told(tqdm):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **{**options, "disable": False, "file": io.StringIO()})
            self._counts = str(options.get("desc", "")).startswith("Reconstructing")

        def update(self, n: float | None = 1) -> Any:
            changed = super().update(n)
            if self._counts:
                advance(self.n, self.total)
            return changed

    return Told


def snapshot(name: str, *, kind: str = "models", revision: str = "main") -> Path | None:
    """The newest copy in the cache of a branch of the hub's models or datasets, complete or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = Path(HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    newest = repo / "refs" / revision
    return repo / "snapshots" / newest.read_text().strip() if newest.is_file() else None


def _is_whole(folder: Path) -> bool:
    """Whether config.json and all weight files exist; an interrupted download leaves only some."""
    index = folder / "model.safetensors.index.json"
    weights = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else None
    needed = {"config.json", *(weights or {"model.safetensors"})}
    return all((folder / file).is_file() for file in needed)


def _refused(name: str, error: OSError, where: str) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        what = f"the hub gives {name} only to those who accepted its terms"
        fix = f"accept them at https://huggingface.co/{name}, then hf auth login, or set HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        what = f"there is no folder {name}, and the hub has no such model or keeps it private"
        fix = "check the name; for a private one: hf auth login, or set HF_TOKEN"
    else:
        what = f"{name} is not on this machine and cannot be downloaded: {reason(error)}"
        fix = f"hf download {name} where there is a network, with HF_HOME in a folder that this machine sees"
    return ModelError(what, where=where, fix=fix)


def reason(error: OSError) -> str:
    """The first line of what the hub's library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
