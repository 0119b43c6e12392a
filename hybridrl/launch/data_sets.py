"""Data sets that a config names as the hub does: which are absent here, and their download before a run."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.data.hub_rows import wanted_split
from hybridrl.launch.preflight import Say
from hybridrl.models import hub_datasets


def absent(loaded: LoadedConfig[Any]) -> list[hub_datasets.Split]:
    """The parts of data sets of which this machine has no copy."""
    found = _named(loaded)
    return [split for where, split in found if hub_datasets.find(split, where=where) is None]


def fetch(loaded: LoadedConfig[Any], say: Say) -> None:
    """Download every absent one.

    Raises:
        DataError: the hub does not give it, or the config does not say which part of it.
    """
    for where, split in _named(loaded):
        if hub_datasets.find(split, where=where) is None:
            say("download", str(split))
            hub_datasets.fetch(split, where=where)


def describe_absent(loaded: LoadedConfig[Any]) -> str:
    """One line: what a launch would download, and what was therefore not looked at; "" if nothing."""
    names = ", ".join(map(str, absent(loaded)))
    return (
        f"{names} would be downloaded; its rows, and the reward on them, were not looked at" if names else ""
    )


def _named(loaded: LoadedConfig[Any]) -> Iterator[tuple[str, hub_datasets.Split]]:
    """Config place and part of every data set of the hub."""
    data = loaded.config.data
    for split, source in (("train", data.train), ("heldout", data.heldout)):
        if source is not None and source.hub is not None:
            where = loaded.where(f"data.{split}.hub")
            yield where, wanted_split(source.hub, source.options, split=split)
