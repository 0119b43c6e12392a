"""verl's keys about pictures."""

from pathlib import Path

from hybridrl.config.load import load
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.translation import Translation
from hybridrl.importer.verl import translate

LEAST = {
    "actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "data.train_files": "geo3k/train.parquet",
    "data.max_prompt_length": 1024,
}
FROZEN = "actor_rollout_ref.actor.freeze_vision_tower"


def translated(**keys: object) -> Translation:
    given = LEAST | {key.replace("__", "."): value for key, value in keys.items()}
    overrides = tuple(Override(key, value, str(value), 1) for key, value in given.items())
    return translate(Launch("verl.trainer.main_ppo", overrides, ""))


def config(tmp_path: Path, found: Translation):
    path = tmp_path / "imported.yaml"
    path.write_text(found.as_yaml("test"))
    return load(path).config


def test_the_column_of_pictures_is_kept_and_leaves_room_for_text(tmp_path: Path) -> None:
    images = config(tmp_path, translated(data__image_key="images")).data.images
    assert images is not None and (images.field, images.max_tokens) == ("images", 512)


def test_a_frozen_tower_is_frozen(tmp_path: Path) -> None:
    keys = {"data__image_key": "images", FROZEN: True}
    assert config(tmp_path, translated(**keys)).actor.vision.mode == "frozen"
    assert config(tmp_path, translated(data__image_key="images")).actor.vision.mode == "train"


def test_a_script_without_pictures_freezes_nothing(tmp_path: Path) -> None:
    found = translated(**{FROZEN: True})
    assert config(tmp_path, found).data.images is None
    assert any(FROZEN in one.source and "nothing of the tower" in one.why for one in found.no_counterpart)
