"""The checkpoints of a run: which ones are complete, which one to resume from, which ones are deleted.

This module imports no Megatron.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hybridrl.errors import CheckpointError
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer import committed

_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint of a run."""

    step: int
    folder: Path
    record: Mapping[str, Any]

    @property
    def progress(self) -> Mapping[str, Any]:
        """State of the controller: position of the prompt source, state of reward shaping and estimator.

        Raises:
            CheckpointError: the record has none.
        """
        found = self.record.get("progress")
        if not isinstance(found, dict):
            raise CheckpointError(
                f"{self.folder} is damaged: its {committed.RECORD} has no progress",
                fix="use an earlier checkpoint",
            )
        return found


@dataclass(frozen=True, slots=True)
class Flawed:
    """A checkpoint folder that cannot be used, and why."""

    folder: Path
    error: CheckpointError

    @property
    def unfinished(self) -> bool:
        """Whether it has no commit record: its writer was stopped, or somebody removed the record.

        Its other files are not known to be damaged.
        """
        return any(not (part / committed.RECORD).exists() for part in _parts(self.folder))


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest undamaged checkpoint, and the unusable newer ones."""

    checkpoint: Checkpoint | None
    passed_over: tuple[Flawed, ...]
    """Unusable checkpoints, newest first."""

    def taken(self, folder: Path) -> Checkpoint:
        """The chosen checkpoint.

        Args:
            folder: folder that was searched, for the error message.

        Raises:
            CheckpointError: there is no usable checkpoint; the message gives the reason for each file.
        """
        if self.checkpoint is not None:
            return self.checkpoint
        reasons = "; ".join(flawed.error.what for flawed in self.passed_over)
        raise CheckpointError(
            f"{folder} holds no {'undamaged' if reasons else 'whole'} checkpoint{reasons and f': {reasons}'}",
            fix="run.name=... starts another run",
        )

    def describe(self) -> list[str]:
        """Messages for the user: each checkpoint that was passed over, and why."""
        taken = f"step {self.checkpoint.step} is taken instead" if self.checkpoint else "the run starts anew"
        return [
            f"{flawed.folder} is passed over, {taken}: {flawed.error.what}" for flawed in self.passed_over
        ]


def named(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return folder / f"step_{step:06d}"


def step_named(name: str) -> int | None:
    """The step of a folder that is named as a checkpoint; None: it is not."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def critic_part(checkpoint: Path) -> Path:
    """Folder of the critic's part of a checkpoint, which exists if the critic had dedicated ranks."""
    return checkpoint.parent / "critic" / checkpoint.name


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run whose files all exist with the recorded sizes, oldest first.

    The contents of the files are not read.
    """
    found = []
    for step, path in _folders(folder):
        with contextlib.suppress(CheckpointError):
            found.append(Checkpoint(step, path, _each_part(path, committed.read)))
    return found


def newest_undamaged(folder: Path) -> Choice:
    """The newest checkpoint whose files all match their checksums.

    This reads every byte of it, and of newer ones that turn out to be damaged.

    Raises:
        CheckpointError: an incompatible version of hybridrl wrote it.
    """
    passed_over = []
    for step, path in reversed(_folders(folder)):
        try:
            record = _each_part(path, committed.verify)
        except CheckpointError as error:
            passed_over.append(Flawed(path, error))
            continue
        committed.refuse_other_format(path, record)
        return Choice(Checkpoint(step, path, record), tuple(passed_over))
    return Choice(None, tuple(passed_over))


def undamaged(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step. This reads every byte of it.

    Raises:
        CheckpointError: it is missing, incomplete, damaged (the message names each file), or of an
            incompatible version.
    """
    path = named(folder, step)
    if not path.is_dir():
        steps = ", ".join(str(checkpoint.step) for checkpoint in whole_checkpoints(folder))
        raise CheckpointError(
            f"{folder} holds no whole checkpoint of step {step}",
            fix=f"there are those of steps {steps}" if steps else "train with run.save_every",
        )
    record = _each_part(path, committed.verify)
    committed.refuse_other_format(path, record)
    return Checkpoint(step, path, record)


def to_resume_from(
    folder: Path, model: ModelSpec, *, required: bool, warn: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint to resume from.

    Newer checkpoints that are damaged are renamed, so that the run can save their steps again. Nothing is
    deleted.

    Args:
        model: model of the run's config.
        required: a checkpoint must exist. If False, a run whose checkpoints are all unfinished starts anew.
        warn: called with a message for each checkpoint that is passed over.

    Returns:
        The checkpoint; None if the run starts anew.

    Raises:
        CheckpointError: all checkpoints are damaged (the message names each file), none exists although one
            is required, or the newest undamaged one is of another model or version; nothing was renamed.
    """
    choice = newest_undamaged(folder)
    chosen, passed_over = choice.checkpoint, choice.passed_over
    if required or not all(flawed.unfinished for flawed in passed_over):
        chosen = choice.taken(folder)
    if chosen is not None:
        committed.refuse_other_model(chosen.folder, chosen.record, model)
    for flawed, text in zip(passed_over, choice.describe(), strict=True):
        warn(f"{text}; it is kept as {_set_aside(flawed.folder).name}")
    return chosen


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints of a run are never deleted."""

    newest: int
    every: int = 0
    """Checkpoints of steps that this divides are kept as well; 0: none of them is."""


def delete_old(folder: Path, keep: Keep) -> None:
    """Delete complete checkpoints that need not be kept."""
    # The newest was read back from disk before it was committed. Damaged ones were renamed and do not count.
    for old in whole_checkpoints(folder)[: -keep.newest]:
        if keep.every and old.step % keep.every == 0:
            continue
        for part in (old.folder, critic_part(old.folder)):  # the critic's part rarely exists
            (part / committed.RECORD).unlink(missing_ok=True)  # a kill from here on leaves an unfinished one
            shutil.rmtree(part, ignore_errors=part != old.folder)


def _folders(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, oldest first; unfinished .tmp and renamed folders do not match."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step_*") if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _each_part(path: Path, use: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Apply `use` to the actor's folder and, if the critic had dedicated ranks, to the critic's.

    Returns the actor's record.
    """
    record = use(path)
    if record.get("critic_apart"):
        use(critic_part(path))
    return record


def _parts(path: Path) -> list[Path]:
    try:
        dedicated = committed.read(path).get("critic_apart")
    except CheckpointError:
        dedicated = False
    return [path, critic_part(path)] if dedicated else [path]


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint, and its critic's part, to a name that nothing reads; returns the new folder."""
    names = (f"{path.name}.damaged{number if number > 1 else ''}" for number in count(1))
    aside = next(free for name in names if not (free := path.with_name(name)).exists())
    if critic_part(path).exists():
        critic_part(path).rename(critic_part(aside))
    path.rename(aside)
    return aside
