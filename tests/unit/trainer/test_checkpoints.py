"""Which checkpoint a run resumes from, what is said about the others, and which are deleted."""

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_values import DAMAGE, FILE, LAYOUT, flip_a_byte, write_checkpoint, zero

from hybridrl.errors import CheckpointError
from hybridrl.trainer.checkpoints import (
    Keep,
    critic_part,
    delete_old,
    named,
    newest_undamaged,
    to_resume_from,
    undamaged,
    whole_checkpoints,
)
from hybridrl.trainer.committed import RECORD

MODEL = LAYOUT.spec


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 4."""
    for step in (2, 4):
        save(tmp_path, step)
    return tmp_path


def save(run: Path, step: int, *, critic_apart: bool = False) -> None:
    write_checkpoint(named(run, step), {"progress": {"at": step}, "critic_apart": critic_apart})


def resumed(run: Path, *, required: bool = True) -> tuple[int | None, list[str]]:
    """Step of the checkpoint that a run resumes from, and the warnings."""
    said: list[str] = []
    found = to_resume_from(run, MODEL, required=required, warn=said.append)
    return found.step if found else None, said


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in whole_checkpoints(run)]


def test_the_newest_whole_one_is_taken_and_nothing_is_said(run: Path) -> None:
    assert resumed(run) == (4, [])
    assert newest_undamaged(run).taken(run).progress == {"at": 4}


@pytest.mark.parametrize("kind", DAMAGE)
def test_of_a_damaged_one_the_one_before_is_taken_and_file_and_reason_are_said(run: Path, kind: str) -> None:
    spoil, reason = DAMAGE[kind]
    spoil(named(run, 4) / FILE)
    step, (text,) = resumed(run)
    assert step == 2
    for words in (str(named(run, 4)), "passed over", "step 2 is taken", FILE, reason, "step_000004.damaged"):
        assert words in text


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_record_is_verified_too(run: Path, kind: str) -> None:
    DAMAGE[kind][0](named(run, 4) / RECORD)
    step, (text,) = resumed(run)
    assert step == 2 and RECORD in text


def test_the_steps_of_a_damaged_one_can_be_saved_anew_and_the_good_one_stays_until_then(run: Path) -> None:
    flip_a_byte(named(run, 4) / FILE)
    resumed(run)
    delete_old(run, Keep(1))
    assert steps(run) == [2]
    save(run, 4)
    delete_old(run, Keep(1))
    assert steps(run) == [4]
    assert (run / "step_000004.damaged" / FILE).exists()
    assert resumed(run) == (4, [])


def test_a_step_that_is_damaged_twice_keeps_both(run: Path) -> None:
    for _ in range(2):
        flip_a_byte(named(run, 4) / FILE)
        resumed(run)
        save(run, 4)
    assert sorted(path.name for path in run.glob("*.damaged*")) == [
        "step_000004.damaged",
        "step_000004.damaged2",
    ]


@pytest.mark.parametrize("required", [True, False])
def test_where_all_are_damaged_the_error_names_each_file_and_nothing_is_touched(
    run: Path, required: bool
) -> None:
    zero(named(run, 4) / FILE)
    (named(run, 2) / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no undamaged checkpoint") as refused:
        resumed(run, required=required)
    assert f"{named(run, 4) / FILE} is damaged" in refused.value.what
    assert f"{named(run, 2) / FILE} is missing" in refused.value.what
    assert {path.name for path in run.iterdir()} == {"step_000002", "step_000004"}


def test_every_damaged_file_of_a_checkpoint_is_named(run: Path) -> None:
    for path in named(run, 4).glob("policy.*"):
        flip_a_byte(path)
    _, (text,) = resumed(run)
    assert all(f"policy.0000{rank}.safetensors is damaged" in text for rank in range(2))


def test_a_run_without_a_checkpoint_starts_anew_unless_one_is_required(tmp_path: Path) -> None:
    assert resumed(tmp_path / "none", required=False) == (None, [])
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        resumed(tmp_path / "none")


def test_a_run_whose_only_checkpoint_is_unfinished_starts_anew_unless_one_is_required(tmp_path: Path) -> None:
    named(tmp_path, 2).mkdir()
    with pytest.raises(CheckpointError, match="has no COMMITTED"):
        resumed(tmp_path)
    step, (text,) = resumed(tmp_path, required=False)
    assert step is None and "starts anew" in text
    assert not named(tmp_path, 2).exists()  # so that the step can be saved


@pytest.mark.parametrize("field,now", [("ffn_size", 96), ("rope_theta", 1e6), ("num_layers", 3)])
def test_another_model_is_refused_with_both_values(run: Path, field: str, now: float) -> None:
    other = replace(MODEL, **{field: now})
    with pytest.raises(CheckpointError, match="holds another model than that of model.path") as refused:
        to_resume_from(run, other, required=True, warn=print)
    assert f"{field} is {getattr(MODEL, field)!r} there, {now!r} here" in refused.value.what
    assert refused.value.where == "model.path"


def test_a_named_one_that_is_damaged_is_refused(run: Path) -> None:
    flip_a_byte(named(run, 4) / FILE)
    assert undamaged(run, 2).step == 2
    with pytest.raises(CheckpointError, match=f"{FILE} is damaged"):
        undamaged(run, 4)
    with pytest.raises(CheckpointError, match="of step 3"):
        undamaged(run, 3)


def test_one_of_another_version_is_refused_and_not_passed_over(run: Path) -> None:
    (named(run, 4) / RECORD).write_text('{"files": {}}')  # as format 1 was
    with pytest.raises(CheckpointError, match="has format 1"):
        resumed(run)


@pytest.mark.parametrize("spoil", [flip_a_byte, Path.unlink])
def test_it_is_damaged_if_the_part_of_a_critic_with_its_own_ranks_is(tmp_path: Path, spoil) -> None:
    for step in (2, 4):
        save(tmp_path, step, critic_apart=True)
        write_checkpoint(critic_part(named(tmp_path, step)))
    assert resumed(tmp_path) == (4, [])
    spoil(critic_part(named(tmp_path, 4)) / FILE)
    step, (text,) = resumed(tmp_path)
    assert step == 2 and str(critic_part(named(tmp_path, 4)) / FILE) in text
    assert {path.name for path in (tmp_path / "critic").iterdir()} == {"step_000002", "step_000004.damaged"}


def test_a_checkpoint_counts_once_the_part_of_a_critic_with_its_own_ranks_is_there(tmp_path: Path) -> None:
    for step in (2, 4):
        save(tmp_path, step, critic_apart=True)
    assert steps(tmp_path) == []
    write_checkpoint(critic_part(named(tmp_path, 2)))
    assert steps(tmp_path) == [2]
    delete_old(tmp_path, Keep(1))
    assert steps(tmp_path) == [2]


def test_old_ones_are_deleted_with_their_critics(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, critic_apart=True)
        write_checkpoint(critic_part(named(tmp_path, step)))
    delete_old(tmp_path, Keep(2))
    assert steps(tmp_path) == [4, 6]
    assert sorted(path.name for path in (tmp_path / "critic").iterdir()) == ["step_000004", "step_000006"]


def test_those_of_round_steps_are_never_deleted(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    delete_old(tmp_path, Keep(1, every=4))
    assert steps(tmp_path) == [4, 8, 10]


def test_what_is_being_written_is_no_checkpoint(run: Path) -> None:
    named(run, 4).rename(run / "step_000004.tmp")
    assert resumed(run) == (2, [])
