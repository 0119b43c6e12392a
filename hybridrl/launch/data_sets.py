"""Data sets that a config names as the hub does: which are absent here, and their download before a run."""

from collections.abc import Container, Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.data.hub_rows import wanted_split
from hybridrl.launch.preflight import Say
from hybridrl.models import hub_datasets
from hybridrl.observe.progress import progress


def fetch(loaded: LoadedConfig[Any], say: Say, *, splits: Container[str] = ("train", "heldout")) -> None:
    """Download every absent one.

    Args:
        splits: which of data.train and data.heldout.

    Raises:
        DataError: the hub does not give it, or the config does not say which part of it.
    """
    for where, split in _absent(loaded, splits):
        say("download", str(split))
        with progress("download", str(split), "files") as advance:
            hub_datasets.fetch(split, where=where, advance=advance)


def describe_absent(loaded: LoadedConfig[Any]) -> str:
    """One line: what a launch would download, and what was therefore not looked at; "" if nothing."""
    names = ", ".join(str(split) for _, split in _absent(loaded))
    return (
        f"{names} would be downloaded; its rows, and the reward on them, were not looked at" if names else ""
    )


def _absent(
    loaded: LoadedConfig[Any], splits: Container[str] = ("train", "heldout")
) -> Iterator[tuple[str, hub_datasets.Split]]:
    """Config place and part of every data set of the hub of which this machine has no copy when it is asked
    for."""
    data = loaded.config.data
    for split, source in (("train", data.train), ("heldout", data.heldout)):
        if source is not None and source.hub is not None and split in splits:
            where = loaded.where(f"data.{split}.hub")
            wanted = wanted_split(source.hub, source.options, split=split)
            if hub_datasets.find(wanted, where=where) is None:
                yield where, wanted
