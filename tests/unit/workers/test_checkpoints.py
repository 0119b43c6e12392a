"""Which checkpoint a run resumes from."""

from pathlib import Path

from hybridrl.trainer import committed
from hybridrl.workers.columns import critic_part
from hybridrl.workers.trainer import newest_checkpoint


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_folder_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step_000003").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_a_checkpoint_counts_once_the_part_of_a_critic_with_its_own_ranks_is_there(tmp_path: Path) -> None:
    def commit(folder: Path, facts: dict) -> None:
        unfinished = folder.with_name(f"{folder.name}.tmp")
        unfinished.mkdir(parents=True)
        committed.commit(unfinished, folder, facts, {})

    for step in (1, 2):
        commit(tmp_path / f"step_{step:06d}", {"progress": step, "critic_apart": True})
    assert newest_checkpoint(tmp_path) is None
    commit(critic_part(tmp_path / "step_000001"), {})
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.progress == 1
