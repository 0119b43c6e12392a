"""A run that is resumed takes a newer checkpoint from its store; a new one leaves copies of others alone."""

from pathlib import Path

import pytest
from checkpoint_values import write_checkpoint

from hybridrl.config.load import LoadedConfig, load
from hybridrl.errors import RunFolderError
from hybridrl.launch import stored
from hybridrl.trainer.checkpoints import named, whole_checkpoints
from hybridrl.trainer.store import Store

CONFIG = """
model: {path: model}
data: {train: rows.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 8, max_response_tokens: 2}
run: {name: mine, folder: "%s/runs", store: "%s"}
"""


def config(folder: Path, url: str) -> LoadedConfig:
    (folder / "run.yaml").write_text(CONFIG % (folder, url))
    return load(folder / "run.yaml")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedConfig:
    url = f"file://{tmp_path}/store"
    write_checkpoint(named(tmp_path / "elsewhere", 20))
    Store(url, "mine").put(whole_checkpoints(tmp_path / "elsewhere")[0], {})
    return config(tmp_path, url)


def test_a_resume_takes_what_is_newer(loaded: LoadedConfig, tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    stored.fetch(loaded, "required", lambda *words: said.append(words))
    stored.fetch(loaded, "if_possible", lambda *words: said.append(words))
    checkpoints = tmp_path / "runs" / "mine" / "checkpoints"
    assert said == [("store", f"step 20 was copied from file://{tmp_path}/store/mine to {checkpoints}")]
    assert [one.step for one in whole_checkpoints(checkpoints)] == [20]


def test_a_new_run_does_not_take_the_place_of_another(loaded: LoadedConfig, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="a run of this name has checkpoints in .*, the last of step 20"):
        stored.fetch(loaded, "never", print)
    assert not (tmp_path / "runs").exists()
    stored.fetch(config(tmp_path, f"file://{tmp_path}/another"), "never", print)


def test_a_store_that_does_not_answer_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").write_text("a file where a folder should be")
    loaded = config(tmp_path, f"file://{tmp_path}/store/mine/below")
    (tmp_path / "store" / "mine").unlink()
    (tmp_path / "store" / "mine").symlink_to("mine")
    with pytest.raises(RunFolderError, match="does not answer") as refused:
        stored.fetch(loaded, "required", print)
    assert "run.yaml:6" in refused.value.where and "run.store=null" in refused.value.fix
