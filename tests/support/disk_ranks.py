"""Trainer ranks whose disk fails while they write a checkpoint."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trainer_scenarios import Rendezvous, Shape, dp_of, play, split
from trainer_values import make_batch, make_setup

from hybridrl.reshard import rank_files


def saved(rank: int, rendezvous: Rendezvous, model: Path, shape: Shape, run: Path, kind: str) -> list[str]:
    """Save step 1, then step 2 while the disk fails, then step 3; returns how each ended.

    Args:
        kind: name of one of FAILURES.
    """
    from hybridrl.trainer.policy import Policy

    trained = Policy(make_setup(rank, rendezvous(), model, shape))
    ends = []
    try:
        for step in (1, 2, 3):
            play(trained, make_batch([split(0, dp_of(shape), (6,))], step=step))
            with FAILURES[kind](rank, run) if step == 2 else _sound():
                ends.append(_end(lambda step=step: trained.save(run / f"step_{step:06d}")))
    finally:
        trained.close()
    return ends


def saved_by_a_thread(
    rank: int, rendezvous: Rendezvous, model: Path, shape: Shape, run: Path
) -> list[list[str]]:
    """Save step 1 in a thread while the disk is full, then step 2; returns the warnings of both steps."""
    from hybridrl.trainer.policy import Policy

    options = {"async_save": True, "goes_on_unsaved": True}
    trained, warned = Policy(make_setup(rank, rendezvous(), model, shape, **options)), []
    try:
        for step in (1, 2):
            played = play(trained, make_batch([split(0, dp_of(shape), (6,))], step=step))
            warned.append([text for _, text in played["reports"][-1]["warnings"]])
            with FAILURES["full"](rank, run) if step == 1 else _sound():
                trained.save(run / f"step_{step:06d}")
                while step == 1 and trained._saver.failure is None:
                    time.sleep(0.01)
        trained.finish_saving()
    finally:
        trained.close()
    return warned


def _end(work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _sound() -> Iterator[None]:
    yield


@contextmanager
def _full_for_the_last_rank(rank: int, run: Path) -> Iterator[None]:
    """The last rank has no room for its file."""

    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "policy.00001.safetensors")

    with patch.object(rank_files, "write", write if rank else rank_files.write):
        yield


@contextmanager
def _read_only(rank: int, run: Path) -> Iterator[None]:
    """No folder can be made."""
    making = Path.mkdir

    def make(path: Path, *args: Any, **options: Any) -> None:
        if path.is_relative_to(run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        making(path, *args, **options)

    with patch.object(Path, "mkdir", make):
        yield


@contextmanager
def _gone(rank: int, run: Path) -> Iterator[None]:
    """The folder vanishes once the last rank has begun to write."""
    write, away = rank_files.write, run / "step_000002.away"

    def lose(folder: Path, *rest: Any) -> None:
        if rank:
            folder.rename(away)
        write(folder, *rest)

    with patch.object(rank_files, "write", lose):
        yield


@contextmanager
def _damaging(rank: int, run: Path) -> Iterator[None]:
    """The last rank's file does not read back as it was written."""
    checksum = rank_files.hf_files.checksum
    with patch.object(
        rank_files.hf_files, "checksum", lambda path, **o: checksum(path, **o) ^ (1 if rank else 0)
    ):
        yield


FAILURES: Mapping[str, Callable[[int, Path], Any]] = {
    "full": _full_for_the_last_rank,
    "read-only": _read_only,
    "gone": _gone,
    "damaging": _damaging,
}
