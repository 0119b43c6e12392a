"""A checkpoint is whole or not there, whatever the disk does, and no rank waits for one that failed."""

from pathlib import Path

import pytest
import trainer_values as values
from disk_ranks import saved, saved_by_a_thread
from trainer_ranks import on_ranks

from hybridrl.errors import CheckpointError
from hybridrl.reshard import rank_files
from hybridrl.trainer.checkpoints import newest_undamaged, whole_checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("model"), "qwen2")


SAID = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "gone": "No such file or directory",
    "damaging": "does not read back as it was written",
}


@pytest.mark.parametrize("kind", SAID)
def test_every_rank_says_the_same_and_the_one_before_stays(model: Path, tmp_path: Path, kind: str) -> None:
    ends = on_ranks(2, saved, model, (2, 1, 1), tmp_path, kind)
    assert [[bool(end) for end in of_rank] for of_rank in ends] == [[False, True, False]] * 2
    assert ends[0] == ends[1] and SAID[kind] in ends[0][1]
    assert [found.step for found in whole_checkpoints(tmp_path)] == [1, 3]
    assert newest_undamaged(tmp_path).passed_over == ()


def test_a_run_that_goes_on_without_a_checkpoint_says_so_and_saves_the_next_one(
    model: Path, tmp_path: Path
) -> None:
    said, _ = on_ranks(2, saved_by_a_thread, model, (2, 1, 1), tmp_path)
    before, after = ([text for text in texts if "was not written" in text] for texts in said)
    assert before == [] and len(after) == 1
    assert after[0].startswith("the last checkpoint was not written: rank 1 could not write its file")
    assert [found.step for found in whole_checkpoints(tmp_path)] == [2]


def test_whoever_waits_for_files_learns_that_a_rank_failed(tmp_path: Path) -> None:
    assert rank_files.collect(tmp_path, "policy", 2) is None
    with pytest.raises(OSError, match="full"), rank_files.failing_for_all(tmp_path, 1):
        raise OSError("full")
    with pytest.raises(CheckpointError, match="rank 1 could not write its file"):
        rank_files.collect(tmp_path, "policy", 2)
    with pytest.raises(CheckpointError, match="is gone"):
        rank_files.collect(tmp_path / "none", "policy", 2)
