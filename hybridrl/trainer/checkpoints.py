"""The checkpoints of a run: which are whole, which one to go on from, which are deleted. Imports no
Megatron.
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
        """Of the controller: where the prompt source stands, what shaping and estimator remember."""
        return self.record["progress"]


@dataclass(frozen=True, slots=True)
class Flawed:
    """A folder of a checkpoint that cannot be used."""

    folder: Path
    error: CheckpointError

    @property
    def unfinished(self) -> bool:
        """Its writer was stopped, or a person removed its record; nothing of it is known to be damaged."""
        return any(not (part / committed.RECORD).exists() for part in _parts(self.folder))


@dataclass(frozen=True, slots=True)
class Choice:
    """The newest undamaged checkpoint, and those that are newer."""

    checkpoint: Checkpoint | None
    passed_over: tuple[Flawed, ...]
    """Newest first."""

    def taken(self, folder: Path) -> Checkpoint:
        """The chosen one.

        Args:
            folder: where it was looked for.

        Raises:
            CheckpointError: there is none; says of each file why.
        """
        if self.checkpoint is not None:
            return self.checkpoint
        reasons = "; ".join(flawed.error.what for flawed in self.passed_over)
        raise CheckpointError(
            f"{folder} holds no {'undamaged' if reasons else 'whole'} checkpoint{reasons and f': {reasons}'}",
            fix="run.name=... starts another run",
        )

    def describe(self) -> list[str]:
        """What a person is to be told: each that was passed over, and why."""
        taken = f"step {self.checkpoint.step} is taken instead" if self.checkpoint else "the run starts anew"
        return [
            f"{flawed.folder} is passed over, {taken}: {flawed.error.what}" for flawed in self.passed_over
        ]


def named(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step_{step:06d}"


def critic_part(checkpoint: Path) -> Path:
    """Where the critic's part of a checkpoint is, if it had ranks of its own."""
    return checkpoint.parent / "critic" / checkpoint.name


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run whose files are there with their sizes, oldest first. Their contents are
    not read."""
    found = []
    for step, path in _folders(folder):
        with contextlib.suppress(CheckpointError):
            found.append(Checkpoint(step, path, _each_part(path, committed.read)))
    return found


def newest_undamaged(folder: Path) -> Choice:
    """The newest checkpoint whose files are all what was written. Reads every byte of it, and of newer ones
    that turn out to be damaged.

    Raises:
        CheckpointError: another version of hybridrl wrote it.
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
    """The checkpoint of a step. Reads every byte of it.

    Raises:
        CheckpointError: it is not there, not whole, damaged (names each file) or of another version.
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
    """The checkpoint to go on from. Newer ones that are damaged are renamed, so that the run can save their
    steps anew; nothing is deleted.

    Args:
        model: of the run's config.
        required: there is to be one. Otherwise a run whose first checkpoint was never finished starts anew.
        warn: is told of each checkpoint that is passed over.

    Returns:
        None: the run starts anew.

    Raises:
        CheckpointError: all are damaged (names each file), there is none where one is required, or the newest
            undamaged one is of another model or version; nothing was renamed.
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


def delete_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints. The newest was read back from the disk before it
    was committed, and damaged ones of an earlier start do not count: they have another name."""
    for old in whole_checkpoints(folder)[:-keep]:
        for part in (old.folder, critic_part(old.folder)):  # most have no critic's
            (part / committed.RECORD).unlink(missing_ok=True)  # a kill now leaves an unfinished one
            shutil.rmtree(part, ignore_errors=part != old.folder)


def _folders(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder, oldest first, of what is not being written and was not set aside."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step_*") if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _each_part(path: Path, use: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read or verify the actor's and, if it had ranks of its own, the critic's; the actor's record."""
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
    """Rename a checkpoint, and its critic's part, to a name that nothing reads; returns the new one."""
    names = (f"{path.name}.damaged{number if number > 1 else ''}" for number in count(1))
    aside = next(free for name in names if not (free := path.with_name(name)).exists())
    if critic_part(path).exists():
        critic_part(path).rename(critic_part(aside))
    path.rename(aside)
    return aside
