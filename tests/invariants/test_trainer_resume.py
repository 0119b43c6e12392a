"""A resumed policy is the uninterrupted one, bit for bit; a checkpoint that is not whole is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_scenarios as scenarios
import trainer_values as values
from checkpoint_values import flip_a_byte
from trainer_ranks import on_ranks

from hybridrl.config.schema import AlgorithmConfig

CASES = {"dp2": ((1, 1, 2), "fp32"), "tp2pp2": ((2, 2, 1), "fp32"), "bf16": ((1, 1, 1), "bf16")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("models"), "qwen2_tied")


@pytest.fixture(scope="module", params=CASES)
def resumed(request, model, tmp_path_factory) -> list[dict[str, Any]]:
    shape, precision = CASES[request.param]
    saved = tmp_path_factory.mktemp("run") / "step_000001"
    return on_ranks(int(np.prod(shape)), scenarios.resume, model, shape, saved, precision)


def test_reports_and_weights_continue_bit_for_bit(resumed) -> None:
    for rank in resumed:
        (through, weights), (again, weights_again) = rank["through"], rank["again"]
        assert through == again
        assert weights.keys() == weights_again.keys()
        for name, weight in weights.items():
            np.testing.assert_array_equal(weight, weights_again[name])


def test_the_schedule_and_random_numbers_continue(resumed) -> None:
    for rank in resumed:
        numbers, numbers_again = rank["numbers"]
        assert numbers == numbers_again
        through, again = (rank[k][0]["reports"][0]["lr"] for k in ("through", "again"))
        assert through == again == 1e-3  # the third optimizer step: warm-up of two is over


@pytest.mark.parametrize("estimator,metric", [("prime", "process/loss"), ("gae", "critic/vf_explained_var")])
def test_what_is_trained_beside_the_policy_continues_too(model, tmp_path, estimator, metric) -> None:
    algorithm = AlgorithmConfig(estimator=estimator, process_model={"optimizer": {"lr": 1e-3}})
    columns = {"advantage_N": None, "reward_N": np.array([0, 1, 1, 0] * 3, np.float32)}
    (rank,) = on_ranks(
        1, scenarios.resume, model, (1, 1, 1), tmp_path / "run", algorithm=algorithm, **columns
    )
    assert rank["through"][0] == rank["again"][0]
    assert rank["through"][0]["loaded"][metric] not in (0.0, pytest.approx(np.log(2), rel=1e-3))


def test_a_checkpoint_that_is_written_beside_the_training_is_of_the_moment_it_was_begun(
    model, tmp_path
) -> None:
    for rank in on_ranks(2, scenarios.save_beside, model, (1, 1, 2), tmp_path / "saved"):
        assert rank["there"] == [False, True]
        assert rank["through"] == rank["again"]
        assert rank["said"] == "ResourceError: no room for 7 bytes"
    assert [path.name for path in tmp_path.iterdir() if not path.suffix] == ["saved"]


def test_a_checkpoint_is_never_overwritten(resumed) -> None:
    for rank in resumed:
        assert "CheckpointError" in rank["refusals"][0]
        assert "exists already" in rank["refusals"][0]


def test_damaged_and_foreign_checkpoints_are_refused_and_change_nothing(model, tmp_path) -> None:
    on_ranks(1, scenarios.resume, model, (1, 1, 1), tmp_path / "whole")
    damaged = {name: tmp_path / name for name in ("uncommitted", "missing", "cut", "flipped", "old", "small")}
    for path in damaged.values():
        shutil.copytree(tmp_path / "whole", path)
    (damaged["uncommitted"] / "COMMITTED").unlink()
    data = next(damaged["missing"].glob("*.safetensors")).name
    (damaged["missing"] / data).unlink()
    with (damaged["cut"] / data).open("r+b") as file:
        file.truncate(1000)
    flip_a_byte(damaged["flipped"] / data)
    change_record(damaged["old"], lambda record: record.pop("format"))
    change_record(damaged["small"], lambda record: shrink(record["parts"]["policy"]["layout"]["spec"]))

    said = on_ranks(1, scenarios.restore_damaged, model, [*damaged.values()])[0]
    expected = (
        ["no COMMITTED"],
        [data, "missing"],
        [data, "1000 bytes"],
        [data, "is damaged"],
        ["format 1", "reads 2"],
        ["policy with other parameters", "model.path"],
        ["holds policy", "trains critic, policy"],
    )
    for words, text in zip(expected, said, strict=True):
        assert text.startswith("CheckpointError")
        assert all(word in text for word in words), text


def change_record(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((checkpoint / "COMMITTED").read_text())
    change(record)
    del record["record_crc32"]  # as older records have none
    (checkpoint / "COMMITTED").write_text(json.dumps(record))


def shrink(spec: dict[str, Any]) -> None:
    spec["ffn_size"] //= 2
