"""verl's asynchronous training becomes a bound on the lag, and swaps under running requests."""

from pathlib import Path

from hybridrl.config.load import load
from hybridrl.config.schema import Config
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


def test_synchronous_training_has_no_lag(tmp_path: Path) -> None:
    cfg = config(tmp_path, translated())
    assert (cfg.batch.max_lag, cfg.rollout.swap) == (0, "drain")
