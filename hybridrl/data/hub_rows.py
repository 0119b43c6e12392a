"""Rows of a data set of the Hugging Face hub, from the local cache."""

from collections.abc import Mapping
from typing import Any

from hybridrl.data.tables import Joined, Parquet, Table
from hybridrl.errors import AbsentDataError
from hybridrl.models.hub_datasets import Split, find

_SPLITS = {"train": "train", "heldout": "test"}


def wanted_split(name: str, options: Mapping[str, Any], *, split: str) -> Split:
    """The part of a data set that a config names.

    Args:
        split: "train" or "heldout", which says what is taken if the options do not.
    """
    return Split(name, options.get("subset"), options.get("split", _SPLITS[split]))


def open_dataset(name: str, options: Mapping[str, Any], *, split: str, where: str) -> Table:
    """The rows of a data set that was downloaded; the arguments are those of wanted_split().

    Raises:
        DataError: it is not on this machine, or has several subsets and none is named.
    """
    wanted = wanted_split(name, options, split=split)
    files = find(wanted, where=where)
    if files is None:
        raise AbsentDataError(
            f"the data set {wanted} is not on this machine",
            where=where,
            fix="hybridrl launch downloads it, where there is a network",
        )
    return Joined([Parquet(str(file)) for file in files], name)
