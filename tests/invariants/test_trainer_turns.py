"""Credit of turns and roles on real trainer ranks: it equals plain Python on every parallel layout."""

from pathlib import Path

import pytest
import trainer_turns as turns
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

LAYOUTS = {
    "one rank": (1, TrainParallel(dp=1)),
    "dp 2": (2, TrainParallel(dp=2)),
    "tp 2": (2, TrainParallel(tp=2, dp=1)),
    "pp 2": (2, TrainParallel(pp=2, dp=1)),
    "cp 2": (2, TrainParallel(cp=2, dp=1)),
}
ON_FSDP = {
    "fsdp x2": (2, TrainParallel(dp=2)),
    "fsdp x3": (3, TrainParallel(dp=3)),
    "fsdp tp 2": (2, TrainParallel(tp=2, dp=1)),
    "fsdp cp 2": (2, TrainParallel(cp=2, dp=1)),
}
SLOW = ("tp 2", "pp 2", "fsdp x3", "fsdp tp 2", "fsdp cp 2")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in [*LAYOUTS, *ON_FSDP]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen3")


@pytest.fixture(scope="module")
def alone(model: Path) -> dict:
    return on_ranks(1, turns.advantages, model, LAYOUTS["one rank"][1])[0]


@pytest.mark.parametrize("layout", EACH)
def test_advantages_of_turns_equal_plain_python_on_every_layout(
    model: Path, alone: dict, layout: str
) -> None:
    count, parallel = (LAYOUTS | ON_FSDP)[layout]
    backend = "fsdp" if layout in ON_FSDP else "megatron"
    found = [alone] if count == 1 else on_ranks(count, turns.advantages, model, parallel, backend)
    for name in turns.ALGORITHMS:
        wanted = turns.expected(name)
        seen = {logp: value for each in found for logp, value in each[name]["seen"].items()}
        assert seen.keys() == wanted.keys(), name
        assert [seen[key] for key in wanted] == pytest.approx(list(wanted.values()), abs=2e-5), name
        for each in found:
            for (loss, norm), (loss_1, norm_1) in zip(
                each[name]["losses"], alone[name]["losses"], strict=True
            ):
                assert loss == pytest.approx(loss_1, rel=2e-5, abs=2e-6), name
                assert norm == pytest.approx(norm_1, rel=2e-5), name
