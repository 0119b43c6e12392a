"""verl's asynchronous training becomes a bound on the lag, and swaps under running requests."""

from pathlib import Path

import pytest

from hybridrl.config.load import load
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.translation import Translation
from hybridrl.importer.verl import translate


def translated(**keys) -> Translation:
    least = {"actor_rollout_ref.model.path": "m", "data.train_files": "t.parquet"}
    named = least | {f"async_training.{key}": value for key, value in keys.items()}
    overrides = tuple(Override(key, value, str(value), 1) for key, value in named.items())
    return translate(Launch("verl.trainer.main_ppo", overrides, ""), 7473)


def config(folder: Path, found: Translation) -> Config:
    (folder / "imported.yaml").write_text(found.as_yaml("test"))
    return load(folder / "imported.yaml").config


def whys(found: Translation) -> str:
    return "\n".join(f"{one.source}: {one.why}" for one in found.no_counterpart)


def test_staleness_becomes_a_lag_and_partial_rollouts_swaps_in_flight(tmp_path: Path) -> None:
    found = translated(staleness_threshold=0.5, partial_rollout=True, require_batches=4)
    cfg = config(tmp_path, found)
    assert (cfg.batch.max_lag, cfg.rollout.swap) == (1, "in_flight")
    assert "batch.max_lag says how many updates" in whys(found)
    assert "in_flight needs" not in whys(found)


def test_partial_rollouts_without_staleness_are_reported(tmp_path: Path) -> None:
    found = translated(staleness_threshold=0, partial_rollout=True)
    cfg = config(tmp_path, found)
    assert (cfg.batch.max_lag, cfg.rollout.swap) == (0, "drain")
    assert "rollout.swap=in_flight needs batch.max_lag" in whys(found)


FULLY = "verl.experimental.fully_async_policy.fully_async_main"


def fully_async(num_prompts: int | None = 7473, **keys) -> Translation:
    """A launch of verl's fully asynchronous trainer; its module has further defaults."""
    least = {"actor_rollout_ref.model.path": "m", "data.train_files": "t.parquet", "data.train_batch_size": 0}
    named = least | {"actor_rollout_ref.actor.ppo_mini_batch_size": 32, "rollout.total_rollout_steps": 51200}
    named |= {key.replace("__", "."): value for key, value in keys.items()}
    overrides = tuple(Override(key, value, str(value), 1) for key, value in named.items())
    return translate(Launch(FULLY, overrides, "fully_async_ppo_trainer.yaml"), num_prompts)


def test_fully_async_training_counts_prompts_between_two_updates_of_the_engines(tmp_path: Path) -> None:
    # 51200 prompts, by 32 x require_batches 4 x trigger_parameter_sync_step 2
    keys = {"async_training__require_batches": 4, "async_training__trigger_parameter_sync_step": 2}
    cfg = config(tmp_path, fully_async(None, **keys))
    assert (cfg.batch.prompts_per_step, cfg.batch.minibatch_prompts, cfg.run.steps) == (256, 32, 200)


def test_fully_async_training_ends_with_its_epochs(tmp_path: Path) -> None:
    found = fully_async(1000, trainer__total_epochs=2)
    cfg = config(tmp_path, found)
    assert (cfg.batch.prompts_per_step, cfg.run.steps) == (32 * 4, 2000 // 128)
    assert {one.key: one.source for one in found.translated}["run.steps"] == "trainer.total_epochs=2"


def test_fully_async_training_has_defaults_of_its_own(tmp_path: Path) -> None:
    cfg = config(tmp_path, fully_async())
    assert (cfg.batch.max_lag, cfg.rollout.swap, cfg.algorithm.correction) == (1, "in_flight", ("bypass",))
    cfg = config(tmp_path, fully_async(algorithm__rollout_correction__bypass_mode=False))
    assert cfg.algorithm.correction == ()
    assert "--config-name" not in whys(fully_async())


@pytest.mark.parametrize("key", ["data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"])
def test_a_size_below_1_is_refused(key: str) -> None:
    least = {"actor_rollout_ref.model.path": "m", "data.train_files": "t.parquet", key: -1}
    overrides = tuple(Override(name, value, str(value), 1) for name, value in least.items())
    with pytest.raises(ConfigError, match=f"{key}=-1 is not 1 or more"):
        translate(Launch("verl.trainer.main_ppo", overrides, ""), 7473)


def test_synchronous_training_has_no_lag(tmp_path: Path) -> None:
    cfg = config(tmp_path, translated())
    assert (cfg.batch.max_lag, cfg.rollout.swap) == (0, "drain")
