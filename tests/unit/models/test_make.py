"""What a model that is still to be made will be, asked of its maker."""

from pathlib import Path

from hybridrl.models.make import knows_config, spec_of_made
from hybridrl.models.published import published_config
from hybridrl.models.spec import from_config, read
from hybridrl.models.tiny import qwen3_arithmetic

NAME = "Qwen/Qwen3-30B-A3B"


@knows_config(lambda seed: published_config(NAME) or {})
def large(folder: Path, seed: int) -> None:
    raise AssertionError("its weights are written")


def test_a_maker_that_knows_the_config_writes_no_weights() -> None:
    assert spec_of_made(f"{__name__}:large", 0, where="") == from_config(
        published_config(NAME) or {}, where=""
    )


def test_another_writes_the_model_and_it_is_read(tmp_path: Path) -> None:
    qwen3_arithmetic(tmp_path / "made", 1)
    assert spec_of_made("hybridrl.models.tiny:qwen3_arithmetic", 1, where="") == read(tmp_path / "made")
