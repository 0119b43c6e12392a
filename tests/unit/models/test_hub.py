"""Models by their name: folders and the cache come first, then what is published, then a download."""

import json
import os
import subprocess
import sys

import pytest
from hub_values import CONFIG, cached, served

from hybridrl.models import hub
from hybridrl.models.published import read_published
from hybridrl.models.spec import from_config

TINY = from_config(CONFIG, where="test")
NAME = "acme/tiny"
WHOLE = {"config.json": CONFIG, "model.safetensors": "weights", "tokenizer.json": "{}"}
INDEX = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
PARTS = {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "model-1.safetensors": "weights"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_itself_even_if_the_cache_has_its_name(cache, tmp_path):
    cached(cache, NAME, WHOLE)
    (tmp_path / NAME).mkdir(parents=True)
    assert not hub.is_name(NAME)
    assert hub.find_folder(NAME) == hub.find_folder(str(tmp_path / NAME)).relative_to(tmp_path)


@pytest.mark.parametrize("files", [WHOLE, PARTS | {"model-2.safetensors": "weights"}])
def test_a_whole_copy_in_the_cache_is_a_folder(cache, files):
    folder = cached(cache, NAME, files)
    assert hub.find_folder(NAME) == folder == hub.fetch(NAME, where="test")


@pytest.mark.parametrize("files", [{"config.json": CONFIG}, PARTS, {"model.safetensors": "weights"}])
def test_a_part_of_a_copy_is_none(cache, files):
    cached(cache, NAME, files)
    assert hub.find_folder(NAME) is None


@pytest.mark.parametrize("path", ["/abs/model", "plain", "a/b/c", "runs/models/x", "../x", "a b/c"])
def test_paths_are_no_names(cache, path):
    assert not hub.is_name(path)
    assert hub.find_folder(path) is None and hub.find_spec(path) is None


def test_the_spec_comes_from_the_copy_then_from_the_table_then_from_a_cached_config(cache):
    published = "Qwen/Qwen2.5-7B"
    assert hub.find_spec(NAME) is None
    assert hub.find_spec(published) == read_published(published)
    for name in (NAME, published):
        cached(cache, name, {"config.json": CONFIG})
    assert hub.find_spec(NAME) == TINY
    assert hub.find_spec(published) == read_published(published)
    cached(cache, published, WHOLE)
    assert hub.find_spec(published) == TINY


SCENARIOS = """
import json, sys
from hybridrl.errors import ModelError
from hybridrl.models import hub
for name in ("acme/tiny", "acme/gated", "acme/absent", "acme/quantised", "acme/pickled"):
    try:
        spec = hub.fetch_spec(name, where="my.yaml:1")
        found = [spec.hidden_size, str(hub.fetch(name, where="my.yaml:1"))]
    except ModelError as error:
        found = [str(error)]
    print(json.dumps([name, *found]))
"""


def outcomes(tmp_path, **environment):
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", SCENARIOS], env=env, capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: found for name, *found in rows}


def test_a_download_brings_what_is_read_and_says_what_keeps_it_from_coming(tmp_path):
    whole = {name: name.encode() for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors")}
    extra = {
        name: name.encode()
        for name in ("original/consolidated.00.pth", "original/model.safetensors", "run.py")
    }
    config = json.dumps(CONFIG).encode()
    quantised = json.dumps(CONFIG | {"quantization_config": {"quant_method": "fp8"}}).encode()
    models = {
        "acme/tiny": {"config.json": config} | whole | extra,
        "acme/gated": None,
        "acme/quantised": {"config.json": quantised, "model.safetensors": b"."},
        "acme/pickled": {"config.json": config, "pytorch_model.bin": b"."},
    }
    with served(models) as (address, taken):
        found = outcomes(tmp_path, HF_ENDPOINT=address)
    size, folder = found["acme/tiny"]
    assert size == TINY.hidden_size
    assert set(taken) == {"config.json", *whole}, (
        "no code, no second copy, nothing of a model that is refused"
    )
    assert {path.name for path in (tmp_path / "hf/hub").glob("models--acme--tiny/snapshots/*/*")} == set(
        taken
    )
    assert folder.startswith(str(tmp_path / "hf/hub/models--acme--tiny/snapshots"))
    assert "accept them at https://huggingface.co/acme/gated" in found["acme/gated"][0]
    assert "the hub has no such model" in found["acme/absent"][0] and "my.yaml:1" in found["acme/absent"][0]
    assert "quantised" in found["acme/quantised"][0]
    assert "safetensors weights are needed" in found["acme/pickled"][0]


def test_without_a_network_the_error_says_how_to_bring_the_model(tmp_path):
    cached(tmp_path / "hf/hub", NAME, WHOLE)
    found = outcomes(tmp_path, HF_HUB_OFFLINE="1")
    assert found[NAME][0] == TINY.hidden_size
    assert "cannot be downloaded" in found["acme/absent"][0]
    assert "hf download acme/absent where there is a network" in found["acme/absent"][0]
