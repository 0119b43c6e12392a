"""verl's FSDP becomes FSDP2 with the sizes and the dtype of the script."""

from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.load import load
from hybridrl.importer.overrides import Launch, Override
from hybridrl.importer.translation import Translation
from hybridrl.importer.verl import translate
from hybridrl.importer.verl_keys import A, M

LEAST: dict[str, Any] = {f"{M}.path": "m", "data.train_files": "t.parquet"}


def translated(**keys: Any) -> Translation:
    overrides = tuple(Override(key, value, str(value), 1) for key, value in (LEAST | keys).items())
    return translate(Launch("verl.trainer.main_ppo", overrides, ""))


def config(tmp_path: Path, found: Translation) -> Any:
    path = tmp_path / "imported.yaml"
    path.write_text(found.as_yaml("test"))
    return load(path).config


def whys(found: Translation) -> str:
    return "\n".join(f"{one.source}: {one.why}" for one in found.no_counterpart)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2", None])
def test_fsdp_stays_fsdp(tmp_path: Path, strategy: str | None) -> None:
    found = translated(**({f"{A}.strategy": strategy} if strategy else {}))
    actor = config(tmp_path, found).actor
    assert actor.backend == "fsdp" and (actor.parallel.tp, actor.parallel.cp) == (1, 1)
    assert "strategy" not in whys(found)


def test_the_trainer_of_megatron_stays_megatron(tmp_path: Path) -> None:
    found = translated(**{f"{A}.strategy": "megatron"})
    assert config(tmp_path, found).actor.backend == "megatron"


@pytest.mark.parametrize(
    "key", ["ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size"]
)
def test_ulysses_is_context_parallelism(tmp_path: Path, key: str) -> None:
    assert config(tmp_path, translated(**{f"{A}.{key}": 4})).actor.parallel.cp == 4


@pytest.mark.parametrize(("dtype", "ours"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_fsdp_computes_in_its_dtype(tmp_path: Path, dtype: str, ours: str) -> None:
    assert config(tmp_path, translated(**{f"{A}.fsdp_config.dtype": dtype})).actor.precision == ours


def test_weights_that_stay_gathered_are_gathered_once(tmp_path: Path) -> None:
    found = translated(**{f"{A}.fsdp_config.reshard_after_forward": False})
    assert config(tmp_path, found).actor.gather == "once"
    usual = translated(**{f"{A}.fsdp_config.reshard_after_forward": True})
    assert config(tmp_path, usual).actor.gather == "each_pass"


@pytest.mark.parametrize(("strategy", "kept"), [("fsdp2", "all"), ("fsdp", "none")])
def test_the_offload_policy_of_fsdp2_keeps_shards_on_the_host(tmp_path: Path, strategy, kept) -> None:
    keys = {f"{A}.strategy": strategy, f"{A}.fsdp_config.offload_policy": True}
    assert config(tmp_path, translated(**keys)).actor.keep_on_host == kept
    moved = {f"{A}.strategy": strategy, f"{A}.fsdp_config.param_offload": True}
    assert config(tmp_path, translated(**moved)).actor.keep_on_host == "none"


@pytest.mark.parametrize(("size", "shard"), [(-1, None), (8, None), (16, None), (4, 4)])
def test_groups_of_fsdp_ranks_that_share_the_weights(tmp_path: Path, size: int, shard: int | None) -> None:
    found = translated(**{f"{A}.fsdp_config.fsdp_size": size})
    assert config(tmp_path, found).actor.parallel.shard == shard
    assert "fsdp_size" not in whys(found)
