"""Data sets by their name on the hub: from the cache, or downloaded as parquet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_values import cached_dataset, parquet, served

from hybridrl.config.schema import SourceConfig
from hybridrl.data.source import open_rows
from hybridrl.errors import AbsentDataError, DataError
from hybridrl.models.hub_datasets import Split, find

NAME = "acme/sums"
PARTS = [parquet([{"prompt": f"{part}+{n}=", "answer": part + n} for n in range(3)]) for part in range(2)]
WHOLE = {"default/train/0000.parquet": PARTS[0], "default/train/0001.parquet": PARTS[1]}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(part="train", **options):
    source = SourceConfig.model_validate({"hub": NAME, **options})
    return open_rows(source, split=part, seed=0, where="my.yaml:2")[1]


def test_all_parts_of_a_split_are_its_rows(cache):
    cached_dataset(cache, NAME, WHOLE)
    rows = opened()
    assert list(rows.column("answer")) == [0, 1, 2, 1, 2, 3]
    assert (rows.place(4), rows.source(4)) == ("row 5 of acme/sums", NAME)


def test_held_out_rows_are_the_split_test_unless_one_is_named(cache):
    cached_dataset(cache, NAME, {"default/test/0000.parquet": PARTS[1]})
    assert len(opened("heldout")) == len(opened("train", split="test")) == 3
    with pytest.raises(
        AbsentDataError, match=r"acme/sums \(train\) is not on this machine .*launch downloads"
    ):
        opened()


def test_a_download_that_was_interrupted_is_no_copy(cache):
    cached_dataset(cache, NAME, {"default/train/0001.parquet": PARTS[1]})  # the first part comes last
    assert find(Split(NAME, None, "train"), where="x") is None


def test_a_subset_has_to_be_named_where_there_are_several(cache):
    files = {"main/train/0000.parquet": PARTS[0], "socratic/train/0000.parquet": PARTS[1]}
    cached_dataset(cache, NAME, files)
    assert opened(subset="socratic")[0]["answer"] == 1
    with pytest.raises(DataError, match="has several subsets, .*give subset: one of main, socratic"):
        opened()
    assert find(Split(NAME, "other", "train"), where="x") is None, "the hub may have it"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"hub": "gsm8k"}, "is no name of the form ORGANISATION/DATASET"),
        ({"hub": NAME, "size": 3}, "size: a data set of the hub has the options subset and split"),
        ({"hub": NAME, "split": 3}, "split = 3 is not text"),
        ({"hub": NAME, "path": "a.jsonl"}, "one of the three"),
        ([], "the list of paths is empty"),
        (["a.jsonl", ""], "a path is empty"),
    ],
)
def test_a_source_that_is_none_is_refused(source, said):
    with pytest.raises(ValueError, match=said):
        SourceConfig.model_validate(source)


SCENARIOS = """
import json
from hybridrl.errors import DataError
from hybridrl.models.hub_datasets import Split, fetch
for name, subset, split in (
    ("acme/sums", None, "train"), ("acme/gated", None, "train"), ("acme/absent", None, "train"),
    ("acme/sums", None, "dev"), ("acme/big", None, "train"), ("acme/none", None, "train"),
):
    try:
        found = [str(path) for path in fetch(Split(name, subset, split), where="my.yaml:1")]
    except DataError as error:
        found = str(error)
    print(json.dumps([f"{name} {split}", found]))
"""


def outcomes(tmp_path, **environment):
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCENARIOS], env=env, capture_output=True, text=True, check=True
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_a_download_brings_the_parts_of_a_split_and_says_what_keeps_them_from_coming(tmp_path):
    sets = {
        NAME: WHOLE | {"default/test/0000.parquet": PARTS[0], "README.md": b"."},
        "acme/gated": None,
        "acme/big": {"default/partial-train/0000.parquet": PARTS[0]},
        "acme/none": {"README.md": b"."},
    }
    with served(sets) as (address, taken):
        found = outcomes(tmp_path, HF_ENDPOINT=address)
    assert [Path(path).read_bytes() for path in found[f"{NAME} train"]] == PARTS
    assert [name.rpartition("/")[2] for name in taken] == ["0001.parquet", "0000.parquet"]
    assert "accept them at https://huggingface.co/datasets/acme/gated" in found["acme/gated train"]
    assert "the hub has no data set acme/absent" in found["acme/absent train"]
    assert f"{NAME} has no split dev  (my.yaml:1): give split: one of test, train" in found[f"{NAME} dev"]
    assert "has only the first 5 GB" in found["acme/big train"]
    assert "give a file" in found["acme/none train"]


def test_without_a_network_the_error_says_how_to_bring_it(tmp_path):
    cached_dataset(tmp_path / "hf/hub", NAME, WHOLE)
    found = outcomes(tmp_path, HF_HUB_OFFLINE="1")
    assert len(found[f"{NAME} train"]) == 2
    assert (
        "hf download acme/absent --repo-type dataset --revision refs/convert/parquet"
        in found["acme/absent train"]
    )
