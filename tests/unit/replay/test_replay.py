"""A policy update that was recorded is taken again bit for bit, and a mistake in it is located."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trainer_values as values
from replay_ranks import batch_of, bundle_of, one_too_early, record, take_again
from trainer_ranks import on_ranks

from hybridrl.errors import CheckpointError
from hybridrl.replay import command
from hybridrl.replay.command import Replayed, trained
from hybridrl.replay.differences import Compared, of_inputs, of_results
from hybridrl.trainer import bundles
from hybridrl.trainer.bundles import Found

ONE, TWO_WITH_TP = (1, 1, 1), (2, 1, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def recorded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "step_000003"
    on_ranks(1, record, model, ONE, folder, batch_of(1))
    return folder


def compared(found: Found, folder: Path, *, tolerance: float = 0.0) -> Compared:
    bundle = bundles.read(folder)
    count_N = trained(bundle.batch)
    return of_results(found, bundle.found, count_N, tolerance=tolerance, same_ranks=not tolerance)


def test_an_update_is_taken_again_bit_for_bit(model: Path, recorded: Path) -> None:
    (found,) = on_ranks(1, take_again, model, ONE, recorded, False)
    result = compared(found, recorded)
    assert result.different == () and result.tensors >= 4 and result.numbers > 20
    assert found.weights == bundles.read(recorded).found.weights


def test_on_other_ranks_it_is_the_same_up_to_rounding(model: Path, recorded: Path) -> None:
    found = on_ranks(2, take_again, model, TWO_WITH_TP, recorded, False)[0]
    assert compared(found, recorded, tolerance=command.TOLERANCE).different == ()


def test_a_mask_that_is_off_by_one_is_located(model: Path, recorded: Path) -> None:
    (found,) = on_ranks(1, take_again, model, ONE, recorded, True)
    first = compared(found, recorded).different[0]
    mask = values.make_block().loss_mask_T
    expected = int(np.flatnonzero(mask)[0])
    assert str(first) == (
        f"position of trajectory 0, token {expected} is {expected - 1} here, {expected} there"
    )


def test_a_step_that_is_not_finite_is_not_finite_again(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step_000003"
    on_ranks(1, record, model, ONE, folder, batch_of(1, is_finite=False))
    kept = bundles.read(folder)
    assert "loss" in kept.found.steps[0]["error"] and len(kept.found.steps) == 1
    (found,) = on_ranks(1, take_again, model, ONE, folder, False)
    assert compared(found, folder).different == ()


def test_two_bundles_are_compared_from_the_first_input_on() -> None:
    batch, found = batch_of(1), Found({}, (), {}, ())
    here = bundle_of(batch, found)
    assert of_inputs(here, here).different == ()
    there = replace(here, batch=replace(batch, blocks=tuple(map(one_too_early, batch.blocks))))
    first = of_inputs(here, there).different[0]
    at = int(np.flatnonzero(values.make_block().loss_mask_T)[0]) - 1
    assert str(first) == f"loss_mask of trajectory 0, token {at} is False here, True there"
    other_prompt = replace(here, prompts=(4, 8, 7))
    assert [str(row) for row in of_inputs(here, other_prompt).different] == [
        "prompt of group 1 is 9 here, 8 there"
    ]


@pytest.mark.parametrize(
    ("name", "here", "there", "said"),
    [
        ("loss", 1.0, 1.0000001, "loss of optimizer step 1 is 1.0 here, 1.0000001 there"),
        ("loss", float("nan"), float("nan"), ""),
        ("lr", 1.0, float("nan"), "lr of optimizer step 1 is 1.0 here, nan there"),
    ],
)
def test_numbers_are_compared_by_their_bits(name: str, here: float, there: float, said: str) -> None:
    def found(value: float) -> Found:
        step = {"loss": 0.5, "grad_norm": 0.5, "lr": 0.5, "metrics": {}}
        return Found({}, (step | {name: value},), {}, ())

    result = of_results(found(here), found(there), np.zeros(0), tolerance=0.0, same_ranks=True)
    assert "".join(map(str, result.different)) == said


def test_what_json_lacks_is_kept(recorded: Path, tmp_path: Path) -> None:
    unfinished, folder = tmp_path / "a.tmp", tmp_path / "a"
    (unfinished / "state").parent.mkdir()
    (recorded / "state").rename(unfinished / "state")
    try:
        found = Found({"x": float("nan"), "y": float("-inf"), "z": 0.1}, ({"error": "nan"},), {}, ())
        bundles.write(unfinished, folder, bundle_of(batch_of(1), found), "")
        again = bundles.read(folder)
    finally:
        (folder / "state").rename(recorded / "state")
    assert np.isnan(again.found.loaded["x"]) and again.found.loaded["y"] == -np.inf
    assert again.found.loaded["z"] == 0.1 and again.found.steps == ({"error": "nan"},)
    assert again.batch.minibatches == batch_of(1).minibatches


def test_a_damaged_bundle_is_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no step bundle"):
        bundles.read(recorded / "state")
    with pytest.raises(CheckpointError, match="is no folder"):
        bundles.read(tmp_path / "none")
    columns = recorded / "columns.safetensors"
    sound = columns.read_bytes()
    columns.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"columns\.safetensors is damaged"):
        bundles.read(recorded)
    columns.write_bytes(sound)


def test_only_the_newest_bundles_are_kept(tmp_path: Path) -> None:
    for step in range(4):
        (tmp_path / f"step_{step:06d}").mkdir()
        (tmp_path / f"step_{step:06d}" / "COMMITTED").touch()
    bundles.delete_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000003"]


def test_a_person_reads_what_differs_first() -> None:
    same = Replayed("1 optimizer step of step 3 on 1 rank", True, Compared(1, 30, ()))
    assert command.lines(same) == [
        "1 optimizer step of step 3 on 1 rank: 30 numbers and 1 tensor are the same, bit for bit"
    ]
