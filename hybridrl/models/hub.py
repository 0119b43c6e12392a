"""Models by their name on the Hugging Face hub: found in its cache on this machine, or downloaded into it.

The cache is the one that all programs share (HF_HOME, HF_HUB_CACHE); HF_HUB_OFFLINE=1 asks nobody. A whole
copy wins over the hub: a model does not change between two launches.
"""

import json
import re
from pathlib import Path

from hybridrl.errors import ModelError
from hybridrl.models import spec
from hybridrl.models.published import read_published

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_NOT_THOSE = ("original/*", "consolidated*", "*/*.safetensors")
"""The same weights once more, as their makers wrote them."""


def is_name(path: str) -> bool:
    """A model that may be on the hub: ORGANISATION/MODEL, and no folder here."""
    return _NAME.fullmatch(path) is not None and not Path(path).is_dir()


def find_folder(path: str) -> Path | None:
    """The folder of a model: the one given, or of a name the whole copy in the cache."""
    if Path(path).is_dir():
        return Path(path)
    snapshot = _snapshot(path) if is_name(path) else None
    return snapshot if snapshot and _is_whole(snapshot) else None


def find_spec(path: str) -> spec.ModelSpec | None:
    """What a model is, without a download: by its folder, what is published of it, or a cached config.json.

    Raises:
        ModelError: that file has no model that a table describes.
    """
    if folder := find_folder(path):
        return spec.read(folder)
    if not is_name(path):
        return None
    if published := read_published(path):
        return published
    snapshot = _snapshot(path)
    return spec.read(snapshot) if snapshot and (snapshot / "config.json").is_file() else None


def fetch_spec(name: str, *, where: str) -> spec.ModelSpec:
    """What the model is by the config.json on the hub, a few kB; from the cache if it is there.

    Args:
        where: the model is named, for errors.

    Raises:
        ModelError: the hub has no such model, does not give it, or cannot be reached; no table describes it.
    """
    from huggingface_hub import hf_hub_download

    snapshot = _snapshot(name)
    if snapshot and (snapshot / "config.json").is_file():
        return spec.read(snapshot)
    try:
        return spec.read(Path(hf_hub_download(name, "config.json")).parent)
    except OSError as error:  # what the hub's library raises, and a full disk
        raise _refused(name, error, where) from error


def fetch(name: str, *, where: str) -> Path:
    """The folder of a model of the hub, downloaded unless the cache has it whole. Only weights, tokenizer and
    configs come, as safetensors and JSON: no code.

    Raises:
        ModelError: as fetch_spec(), or the hub's copy lacks weights in safetensors.
    """
    if folder := find_folder(name):
        return folder
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FILES), ignore_patterns=list(_NOT_THOSE)))
    except OSError as error:
        raise _refused(name, error, where) from error
    if not _is_whole(folder):
        raise ModelError(
            f"the hub's {name} is not whole in {folder}: config.json and safetensors weights are needed",
            where=where,
            fix="launch with a network, or use a model that is published as safetensors",
        )
    return folder


def _snapshot(name: str) -> Path | None:
    """The newest copy in the cache, whole or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    newest = repo / "refs" / "main"
    return repo / "snapshots" / newest.read_text().strip() if newest.is_file() else None


def _is_whole(folder: Path) -> bool:
    """Everything is there that is read: an interrupted download leaves a part."""
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"{name} is not on this machine and cannot be downloaded: {reason}"
        fix = f"hf download {name} where there is a network, with HF_HOME in a folder that this machine sees"
    return ModelError(what, where=where, fix=fix)
