"""Which checkpoint a run resumes from."""

from pathlib import Path

from hybridrl.workers.trainer import newest_checkpoint


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_folder_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step_000003").mkdir()
    assert newest_checkpoint(tmp_path) is None
