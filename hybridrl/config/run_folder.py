"""The folder of a run: one run each, never overwritten, one process at a time."""

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hybridrl import __version__
from hybridrl.config.files import atomic_write
from hybridrl.config.load import LoadedConfig, load_as, values
from hybridrl.config.schema import Config
from hybridrl.config.secrets import masked
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.config.strict_yaml import folded, inline
from hybridrl.errors import ConfigError, RunFolderError, refuse

MAY_CHANGE = frozenset(
    {
        "algorithm.preset",  # a name; the values that it stands for are compared
        "run.name",
        "run.folder",
        "run.steps",
        "run.save_every",
        "run.save_on_interrupt",
        "run.evaluate_every",
        "run.keep_checkpoints",
        "run.keep_every",
        "run.on_save_error",
        "run.store",
        "run.max_restarts",
        "run.export",
        "run.export_every",
        "run.async_save",
        "run.sample_every",
        "run.samples_kept",
        "actor.backend",
        "rollout.num_engines",
        "rollout.max_restarts",
        "rollout.alive_timeout_s",
        "cluster.nodes",
        "cluster.min_nodes",
        "cluster.gpus_per_node",
        "cluster.placement",
        "cluster.start_timeout_s",
        "cluster.step_timeout_s",
        "observe.sinks",
        "reward.timeout_s",
        "reward.num_workers",
    }
)
"""Keys that a resume may change: they decide how long and where the run is, and what it logs, not its
result."""

MAY_CHANGE_BELOW = (
    *("actor.parallel", "rollout.parallel", "cluster.slurm", "cluster.ray", "cluster.deadlines"),
    "run.bundle",
)
"""Sections that a resume may change: they decide where the run is, and its parallel layout."""

_UNSET = object()


@dataclass(slots=True)
class RunFolder:
    """The folder of one run, held by this process until `release`, or until it is left as a context."""

    path: Path
    _lock: TextIO = field(repr=False)

    @classmethod
    def create(cls, loaded: LoadedConfig[Any]) -> "RunFolder":
        """Take the folder for a new run and write its resolved.yaml. A folder of a launch that failed before
        its first record is overwritten.

        Raises:
            RunFolderError: it holds a run, another process holds it, or it cannot be written.
        """
        with contextlib.ExitStack() as held:
            folder = held.enter_context(cls._take(path_of(loaded.config)))
            _refuse_to_overwrite(folder.path)
            (folder.path / "metrics.jsonl").unlink(missing_ok=True)
            atomic_write(folder.path / "resolved.yaml", as_yaml(loaded))
            held.pop_all()
        return folder

    @classmethod
    def open_for_resume(cls, loaded: LoadedConfig[Any]) -> "RunFolder":
        """Take the folder of a run to go on with it, and bring its resolved.yaml up to date.

        Raises:
            RunFolderError: it holds no run, or another process holds it.
            ConfigErrors: the config differs from the run's in keys that decide the result.
        """
        path = path_of(loaded.config)
        _refuse_without_run(path)
        with contextlib.ExitStack() as held:
            folder = held.enter_context(cls._take(path))
            _refuse_changes(path, loaded)
            atomic_write(path / "resolved.yaml", as_yaml(loaded))
            held.pop_all()
        return folder

    def release(self) -> None:
        """Let another process have the folder; the end of this process does the same."""
        self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def _take(cls, path: Path) -> "RunFolder":
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+")
        except OSError as error:
            raise _unwritable(path, error) from error
        _lock(path, lock)
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        except OSError as error:  # a full disk lets a file be made, and nothing be written
            with contextlib.suppress(OSError):
                lock.close()
            raise _unwritable(path, error) from error
        return cls(path, lock)


def is_held(path: Path) -> bool:
    """Whether a process holds a run folder, so that its run goes on."""
    try:
        with (path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def refuse_unusable(loaded: LoadedConfig[Any], *, resume: bool) -> None:
    """Raise what taking the run's folder would raise, and change nothing there.

    Raises:
        RunFolderError, ConfigErrors: as RunFolder.create, or RunFolder.open_for_resume if `resume`.
    """
    path = path_of(loaded.config)
    refuse_unwritable(path, fix=_ELSEWHERE)
    if (path / ".lock").exists():
        with (path / ".lock").open() as lock:
            _lock(path, lock)
    if resume:
        _refuse_without_run(path)
        _refuse_changes(path, loaded)
    else:
        _refuse_to_overwrite(path)


def path_of(config: Config | SupervisedConfig) -> Path:
    """The run folder of a config."""
    return Path(config.run.folder) / config.run.name


def step_of(path: Path) -> int | None:
    """Newest policy update that a run folder has a record of; None: the folder holds no run."""
    metrics = path / "metrics.jsonl"
    steps = (
        [_step(line) for line in metrics.read_text("utf-8", "replace").splitlines()]
        if metrics.exists()
        else []
    )
    found = [step for step in steps if step is not None]
    saved = (path / "checkpoints").is_dir() and any((path / "checkpoints").iterdir())
    return max(found, default=0) if found or saved else None


def as_yaml(loaded: LoadedConfig[Any], width: int | None = None) -> str:
    """Every value of a run with where it came from, one a line; secrets are masked. It
    loads like any other config.

    Args:
        width: of a line, in characters: where the two do not fit, the origin stands on a line of its own
            above the value, and a value that is too long is folded. None: any.
    """
    lines = list(_lines(loaded))
    room = 60 if width is None else width - max(len(origin) for _, origin in lines) - 4
    column = max(1, min(60, room, max(len(line) for line, _ in lines)))  # an origin may be wider than `width`
    body = [f"{line:<{column}}  # {origin}" if origin else line for line, origin in lines]
    if width is not None:
        body = [part for line, row in zip(body, lines, strict=True) for part in _fitted(line, row, width)]
    return "\n".join([f"# hybridrl {__version__}, from {loaded.file}", *body]) + "\n"


def _fitted(line: str, row: tuple[str, str], width: int) -> list[str]:
    """A line of as_yaml in parts that fit."""
    if len(line) <= width:
        return [line]
    value, origin = row
    indent = " " * (len(value) - len(value.lstrip()))
    return [f"{indent}# {origin}", *folded(value, width)]


def changes(before: LoadedConfig[Any], now: LoadedConfig[Any]) -> list[ConfigError]:
    """What keeps a run from being resumed with another config: the keys that differ and must not."""
    then, today = (masked(dict(values(loaded.config))) for loaded in (before, now))
    names = [
        key for key in {**then, **today} if key not in MAY_CHANGE and not key.startswith(MAY_CHANGE_BELOW)
    ]
    errors = [
        _changed(key, then.get(key, _UNSET), today.get(key, _UNSET), now)
        for key in names
        if then.get(key, _UNSET) != today.get(key, _UNSET)
    ]
    schedule = now.config.actor.optimizer.schedule
    was, is_ = before.config.run.steps, now.config.run.steps
    if schedule != "constant" and was != is_:
        what = f"run.steps = {is_}, the run to resume has {was} and its {schedule} schedule spans them"
        errors.append(
            ConfigError(what, where=now.where("run.steps"), fix="start a new run from the exported model")
        )
    return errors


def _lines(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    above: tuple[str, ...] = ()
    for dotted, value in masked(dict(values(loaded.config))).items():
        *sections, name = dotted.split(".")
        shared = next(
            (i for i, (a, b) in enumerate(zip(above, sections)) if a != b), min(len(above), len(sections))
        )
        for depth in range(shared, len(sections)):
            yield f"{'  ' * depth}{sections[depth]}:", ""
        above = tuple(sections)
        plain = list(value) if isinstance(value, tuple) else value
        yield f"{'  ' * len(sections)}{name}: {inline(plain)}", loaded.origins[dotted]


def _changed(key: str, then: object, today: object, now: LoadedConfig[Any]) -> ConfigError:
    was, is_ = (
        "unset" if value is _UNSET else inline(list(value) if isinstance(value, tuple) else value)
        for value in (then, today)
    )
    return ConfigError(
        f"{key} = {is_}, the run to resume has {was}",
        where=now.where(key),
        fix="put it back, or run.name=... starts another",
    )


def _lock(path: Path, lock: TextIO) -> None:
    """Lock an open file of a run folder, or close it and say who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise RunFolderError(
            f"{path} is in use by process {owner}", fix="wait for it, or run.name=... starts another"
        ) from None


def refuse_unwritable(path: Path, *, fix: str) -> None:
    """Make and remove a folder where one is to be: nothing else tells whether it can be made.

    Raises:
        RunFolderError: it cannot.
    """
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        tempfile.TemporaryDirectory(prefix=".hybridrl-", dir=nearest).cleanup()
        if max((len(os.fsencode(part)) for part in path.parts), default=0) > os.pathconf(
            nearest, "PC_NAME_MAX"
        ):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise _unwritable(path, error, fix) from error


_ELSEWHERE = "set run.folder"


def _unwritable(path: Path, error: OSError, fix: str = _ELSEWHERE) -> RunFolderError:
    return RunFolderError(f"cannot write {path}: {error.strerror}", fix=fix)


def _refuse_without_run(path: Path) -> None:
    if not (path / "resolved.yaml").exists():
        raise RunFolderError(f"{path} holds no run to resume", fix="launch without --resume")


def _refuse_changes(path: Path, loaded: LoadedConfig[Any]) -> None:
    refuse(changes(load_as(type(loaded.config), path / "resolved.yaml"), loaded))


def _refuse_to_overwrite(path: Path) -> None:
    step = step_of(path)
    if step is not None:
        raise RunFolderError(
            f"{path} already holds a run at step {step}",
            fix="--resume continues it, run.name=... starts another",
        )


def _step(line: str) -> int | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None  # a line that a crash truncated
    return record.get("step") if isinstance(record, dict) else None
