"""Copies of a run's checkpoints in an object store, through fsspec: any URL that it reads and writes.

    URL/NAME/step_000020/     the files of a checkpoint, COMMITTED last, so that a copy is whole or refused
    URL/NAME/critic/          parts of a critic on dedicated ranks, before the checkpoint that they belong to
    URL/NAME/run/             files of the run folder that a resume on another machine needs

A thread of the driver copies what ranks have committed. Nobody waits for it but the end of the run.
"""

import contextlib
import posixpath
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from hybridrl.errors import CheckpointError, ConfigError
from hybridrl.trainer import committed
from hybridrl.trainer.checkpoints import Checkpoint, Keep, critic_part, named, step_named, whole_checkpoints

_TRIES, _PAUSE_S, _EVERY_S = 3, 1.0, 2.0
_CRITIC, _RUN = "critic", "run"


class Store:
    """The copies of one run."""

    def __init__(self, url: str, run: str) -> None:
        """
        Args:
            run: name of the run.

        Raises:
            ConfigError: fsspec knows no such protocol, or lacks the package for it.
        """
        self.url = posixpath.join(url, run)
        self._fs, self._root = _opened(self.url)

    def steps(self) -> list[int]:
        """Steps of whole copies, ascending."""
        found = []
        for path in self._listed(self._root):
            step = step_named(posixpath.basename(path.rstrip("/")))
            if step is not None and self._fs.exists(f"{path}/{committed.RECORD}"):
                found.append(step)
        return sorted(found)

    def put(self, checkpoint: Checkpoint, run: Mapping[str, Path]) -> None:
        """Copy a committed checkpoint; a copy that is the same already is left as it is.

        Args:
            run: name -> file of the run folder that goes with it.

        Raises:
            OSError: the store does not take it, or a file is gone.
            CheckpointError: a copy has another size than its file.
        """
        place, record = self._place(checkpoint.folder), checkpoint.folder / committed.RECORD
        stored = f"{place}/{committed.RECORD}"
        if self._fs.exists(stored):
            if self._fs.cat_file(stored) == record.read_bytes():
                return
            self._fs.rm_file(stored)
        if critic_part(checkpoint.folder).exists():
            self._put_folder(
                critic_part(checkpoint.folder), f"{self._root}/{_CRITIC}/{checkpoint.folder.name}"
            )
        for name, file in run.items():
            if file.exists():
                self._put_file(file, f"{self._root}/{_RUN}/{name}")
        self._put_folder(checkpoint.folder, place)

    def get(self, step: int, checkpoints: Path) -> None:
        """Copy a checkpoint to a folder of checkpoints, after a check of all of its files.

        Raises:
            OSError, CheckpointError: it is not there, or is damaged; the folder is as before.
        """
        folder = named(checkpoints, step)
        critic = f"{self._root}/{_CRITIC}/{folder.name}"
        if self._fs.exists(f"{critic}/{committed.RECORD}"):
            self._get_folder(critic, critic_part(folder))
        self._get_folder(self._place(folder), folder)

    def get_run(self, folder: Path) -> None:
        """Copy the files of the run folder that are not there."""
        for path in self._listed(f"{self._root}/{_RUN}"):
            file = folder / posixpath.basename(path)
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(path, str(file))

    def set_aside(self, step: int) -> None:
        """Let a damaged copy count no longer, so that the run can copy its step again; nothing else is
        deleted."""
        record = f"{self._root}/{named(Path(), step).name}/{committed.RECORD}"
        self._fs.pipe_file(f"{record}.damaged", self._fs.cat_file(record))
        self._fs.rm_file(record)

    def delete_old(self, keep: Keep) -> None:
        """Delete copies that need not be kept, as checkpoints.delete_old does."""
        for step in self.steps()[: -keep.newest]:
            if keep.every and step % keep.every == 0:
                continue
            name = named(Path(), step).name
            # First the record, so that a kill from here on leaves no copy that counts as whole.
            self._fs.rm_file(f"{self._root}/{name}/{committed.RECORD}")
            self._fs.rm(f"{self._root}/{name}", recursive=True)
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{_CRITIC}/{name}", recursive=True)

    def _place(self, folder: Path) -> str:
        return f"{self._root}/{folder.name}"

    def _listed(self, place: str) -> list[str]:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return self._fs.ls(place, detail=False)
        return []

    def _put_folder(self, folder: Path, place: str) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != committed.RECORD)
        for file in (*files, folder / committed.RECORD):
            self._put_file(file, f"{place}/{file.relative_to(folder).as_posix()}")

    def _put_file(self, file: Path, place: str) -> None:
        self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
        self._fs.put_file(str(file), place)
        self._fs.invalidate_cache()
        size, stored = file.stat().st_size, self._fs.info(place)["size"]
        if size != stored and not place.startswith(f"{self._root}/{_RUN}/"):  # metrics grow meanwhile
            raise CheckpointError(f"{place} has {stored} bytes, {file} has {size}", where=self.url)

    def _get_folder(self, place: str, folder: Path) -> None:
        unfinished = folder.with_name(f"{folder.name}.stored")
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in self._fs.find(place):
            file = unfinished / posixpath.relpath(path, place)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(path, str(file))
        try:
            committed.verify(unfinished)
        except CheckpointError:
            shutil.rmtree(unfinished)
            raise
        unfinished.rename(folder)


def bring_back(store: Store, folder: Path, checkpoints: Path, warn: Callable[[str], None]) -> int | None:
    """Copy the newest undamaged checkpoint from a store, if it is newer than those of a run folder.

    Args:
        folder: the run folder; files of the run that it lacks are copied too.
        warn: called with a message for each copy that is damaged.

    Returns:
        Its step; None: nothing was copied.

    Raises:
        OSError: the store does not answer.
    """
    here = whole_checkpoints(checkpoints)
    newest = here[-1].step if here else 0
    for step in reversed(store.steps()):
        if step <= newest:
            break
        try:
            _got_twice(store, step, checkpoints)
        except CheckpointError as error:
            warn(f"the copy of step {step} in {store.url} is passed over: {error.what}")
            store.set_aside(step)
            continue
        store.get_run(folder)
        return step
    return None


def _got_twice(store: Store, step: int, checkpoints: Path) -> None:
    """Copy a checkpoint; once more if what came is damaged, which the network may have done."""
    with contextlib.suppress(CheckpointError):
        store.get(step, checkpoints)
        return
    store.get(step, checkpoints)


class Mirror:
    """The thread that copies the checkpoints of a run."""

    def __init__(
        self,
        store: Store,
        checkpoints: Path,
        keep: Keep,
        run: Mapping[str, Path],
        warn: Callable[[str, str], None] | None,
        *,
        every_s: float = _EVERY_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        """
        Args:
            keep: which copies are kept.
            run: name -> file of the run folder that goes with a checkpoint.
            warn: called with a kind and a text about a checkpoint that cannot be copied, and then the run
                goes on. None: `raise_failure` raises it.
        """
        self._store, self._checkpoints, self._keep, self._run = store, checkpoints, keep, run
        self._warn, self._every_s, self._pause_s = warn, every_s, pause_s
        self._copied, self._failed = set[int](), dict[int, CheckpointError]()
        self._wake, self._passed, self._closed = threading.Event(), threading.Condition(), False
        self._asked = self._answered = 0
        """Passes over the checkpoints that were asked for, and the last of them that is done."""

        self._thread = threading.Thread(target=self._work, daemon=True, name="store")
        self._thread.start()

    def raise_failure(self) -> None:
        """
        Raises:
            CheckpointError: a checkpoint could not be copied, and the run is not to go on.
        """
        if self._warn is None and self._failed:
            raise self._failed[max(self._failed)]

    def flush(self) -> None:
        """Wait until the checkpoints that are there have been copied.

        Raises:
            CheckpointError: the newest could not be.
        """
        with self._passed:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            self._passed.wait_for(lambda: self._answered >= asked or self._closed)
        if self._failed and max(self._failed) > max(self._copied, default=-1):
            raise self._failed[max(self._failed)]

    def close(self) -> None:
        """End the thread, once the copy is made that is being made."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(self._every_s)
            self._wake.clear()
            asked = self._asked
            for checkpoint in whole_checkpoints(self._checkpoints):
                if checkpoint.step not in self._copied | self._failed.keys() and not self._closed:
                    self._copy(checkpoint)
            with self._passed:
                self._answered = asked
                self._passed.notify_all()

    def _copy(self, checkpoint: Checkpoint) -> None:
        error = next(self._tried(checkpoint), None)
        if error is None:
            self._copied.add(checkpoint.step)
            return
        text = f"the checkpoint of step {checkpoint.step} was not copied to {self._store.url}: {error}"
        self._failed[checkpoint.step] = CheckpointError(
            text, where="run.store", fix="--resume goes on from the run folder, and copies again"
        )
        if self._warn is not None:
            self._warn(f"copy of step {checkpoint.step}", text)

    def _tried(self, checkpoint: Checkpoint) -> Iterator[Exception]:
        """Yields why a checkpoint cannot be copied, if all tries failed and it is still there."""
        for attempt in range(_TRIES):
            try:
                self._store.put(checkpoint, self._run)
                self._store.delete_old(self._keep)
                return
            except Exception as error:  # each protocol has its own
                failure = error
            if not (checkpoint.folder / committed.RECORD).exists():
                return  # it was deleted meanwhile, because there are newer ones
            if attempt + 1 < _TRIES:
                time.sleep(self._pause_s * 2**attempt)
        yield failure


def refuse_unopenable(url: str) -> None:
    """
    Raises:
        ConfigError: fsspec knows no such protocol, or lacks the package for it.
    """
    _opened(url)


def _opened(url: str) -> tuple[Any, str]:
    try:
        found, root = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"run.store = {url!r} cannot be opened: {error}",
            where="run.store",
            fix="a URL of fsspec, as s3://bucket/runs with the package s3fs",
        ) from None
    return found, root.rstrip("/")
