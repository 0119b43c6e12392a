"""Checkpoints of model, optimizer, schedule and random state; ranks of any parallel layout can read them.

Each rank writes the flat ranges of parameters and moments that its optimizer holds, in fp32, into FOLDER.tmp
(reshard/rank_files.py), and reads its file back. Rank 0 waits for the files of all ranks and commits
(trainer/committed.py).
Who waits for whom: all ranks wait until rank 0 has made the folder. After that only rank 0's writer waits,
and it may run in a thread while training goes on.
"""

import contextlib
import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hybridrl.errors import CheckpointError, DeadlineError, ResourceError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.models.spec import count, parameters
from hybridrl.reshard import rank_files
from hybridrl.reshard.flat_ranges import Wanted
from hybridrl.reshard.rank_files import Kept
from hybridrl.trainer import committed
from hybridrl.trainer.base import WEIGHTS, Backend, Model, Optimizer, Trained

Parts = Mapping[str, Trained]
"""Every trained model with its optimizer, by name."""


class Background:
    """Runs one job at a time in a thread of this process. `finish` raises what the job raised."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Wait for the previous job, then start this one.

        Raises: what the previous job raised; then this one is not started.
        """
        self.finish()
        self._job = self._pool.submit(job)

    def finish(self) -> None:
        """Wait for the job.

        Raises: what the job raised, once.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def raise_failure(self) -> None:
        """Raise what the job has raised so far, once. This does not wait."""
        if self._job is not None and self._job.done():
            self.finish()

    @property
    def failure(self) -> BaseException | None:
        """What the job has raised so far; `finish` raises it too."""
        return self._job.exception() if self._job is not None and self._job.done() else None


class Saver:
    """Writes checkpoints, one at a time. Every method except `raise_failure` is *collective*."""

    def __init__(self, backend: Backend, *, background: bool = False, forgiving: bool = False) -> None:
        """
        Args:
            background: `save` returns after copying the state to host memory, and a thread writes the files.
            forgiving: a checkpoint that a thread could not write does not keep later ones from being written.
        """
        self._backend, self._in_background, self._forgiving = backend, background, forgiving
        self._background = Background()

    def save(
        self,
        folder: Path,
        parts: Parts,
        facts: Mapping[str, Any],
        then: Callable[[], None] | None = None,
        more: Callable[[Path], None] | None = None,
    ) -> None:
        """Wait for the previous checkpoint, then write a new one.

        Args:
            facts: additional entries of the commit record; JSON.
            then: called on rank 0 once the checkpoint is committed.
            more: called on rank 0 with the folder before it is committed, to write further files.

        Raises:
            CheckpointError: the folder exists; nothing was written.
            OSError, CheckpointError, ResourceError, DeadlineError: the previous checkpoint could not be
                written, and the saver does not forgive that; or this one could not, which with `background`
                is raised later. Every rank raises it.
        """
        with contextlib.suppress(*(_FAILURES if self._forgiving else ())):
            self.finish()
        if folder.exists():
            raise CheckpointError(
                f"{folder} exists already", fix="checkpoints are never overwritten: choose another folder"
            )
        unfinished = folder.with_name(folder.name + ".tmp")
        dist.barrier()
        _raise_last(_failure_of(partial(_make_anew, unfinished)) if dist.get_rank() == 0 else None)
        job = self._writer(unfinished, folder, parts, facts, then, more)
        self._background.start(job)
        if not self._in_background:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            OSError, CheckpointError, ResourceError, DeadlineError: it could not be written. Every rank raises
                the same error.
        """
        _raise_last(_failure_of(self._background.finish))

    def raise_failure(self) -> None:
        """Raise what the writer has raised since the last call. This does not wait.

        Raises:
            OSError, CheckpointError, ResourceError, DeadlineError: the checkpoint could not be written.
        """
        if not self._forgiving:
            self._background.raise_failure()

    @property
    def failure(self) -> BaseException | None:
        """Why the last checkpoint could not be written, as far as this rank knows by now."""
        return self._background.failure

    def _writer(
        self,
        unfinished: Path,
        folder: Path,
        parts: Parts,
        facts: Mapping[str, Any],
        then: Callable[[], None] | None,
        more: Callable[[Path], None] | None,
    ) -> Callable[[], None]:
        """A function that writes a snapshot of the present state; later training does not change it."""
        rank = dist.get_rank()
        snapshots = {part: list(_snapshot(self._backend, *parts[part])) for part in parts}
        random = {f"{_RANDOM}{name}": state for name, state in self._backend.random_state().items()}
        record = {**facts, **self._record(parts)}
        collect = partial(self._collect, unfinished, list(parts))

        def write() -> None:
            with rank_files.failing_for_all(unfinished, rank):
                for index, (part, kept) in enumerate(snapshots.items()):
                    rank_files.write(unfinished, part, rank, kept, random if index == 0 else {})
            if rank == 0:
                if more is not None:
                    more(unfinished)
                committed.commit(unfinished, folder, record, collect())
                if then is not None:
                    then()

        return write

    def _collect(self, unfinished: Path, parts: list[str]) -> dict[str, int]:
        """Wait for the files of all ranks; returns file -> checksum.

        Raises:
            CheckpointError: a rank could not write its file, or the folder is gone.
            DeadlineError: a file took too long.
        """
        timeout_s = self._backend.setup.timeout_s
        deadline, found = time.monotonic() + timeout_s, {}
        for part in parts:
            while (files := rank_files.collect(unfinished, part, self._backend.layout.world_size)) is None:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"ranks did not write their files of {part} in {timeout_s:g} s",
                        where=str(unfinished),
                        fix="raise cluster.step_timeout_s if the disk is that slow",
                    )
                time.sleep(_POLL_S)
            found |= files
        return found

    def _record(self, parts: Parts) -> dict[str, Any]:
        packages = ("hybridrl", "torch", *self._backend.layout.PACKAGES)
        return {
            "backend": self._backend.setup.actor.backend,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "parts": {
                part: {
                    "layout": committed.layout_record(model.trained),
                    "parameters": count(model.trained.spec),
                    "dtype": "float32",
                    "quantities": optimizer.quantities,
                    "progress": optimizer.progress,
                }
                for part, (model, optimizer) in parts.items()
            },
        }


_POLL_S = 0.02

_FAILURES = (OSError, CheckpointError, ResourceError, DeadlineError)
"""What a disk that is full, read-only, slow or gone raises."""


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed while saving may have left it
    folder.mkdir(parents=True)


def _failure_of(work: Callable[[], None]) -> Exception | None:
    """Do something; returns the error that it ended with."""
    try:
        work()
    except _FAILURES as error:
        return error
    return None


def _raise_last(failure: Exception | None) -> None:
    """Raise the error of the last rank that has one, on every rank: none waits for one that failed.
    *Collective*. Rank 0 waits for the others, so its error may only say that one of them failed."""
    found: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, failure)
    if errors := [error for error in found if error is not None]:
        raise errors[-1]


def restore(folder: Path, backend: Backend, parts: Parts) -> tuple[dict[str, Any], list[str]]:
    """Load a checkpoint into models and optimizers. *Collective*.

    Their parallel layout may differ from the one that wrote the checkpoint. Random numbers are then seeded
    anew from the seed and the step.

    Returns:
        The commit record, and notes for the user about such a difference.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged, of another model or format, or other
            parameters were trained; nothing was changed.
    """
    record = check(folder, parts)
    for part, (model, optimizer) in parts.items():
        wanted = list(_wanted(backend.setup.rank, model, optimizer))
        for want in wanted:
            for tensor in want.tensors.values():
                tensor.zero_()  # elements that no file holds are padding
        rank_files.fill(folder, part, committed.layout(record, part), wanted)
        optimizer.resume(record["parts"][part]["progress"])
    first = next(iter(parts))
    made_with, now = committed.layout(record, first), parts[first][0].trained
    if made_with == now:
        backend.set_random_state(rank_files.read_beside(folder, first, backend.setup.rank, _RANDOM))
        return record, []
    num_steps = record["parts"][first]["progress"]["num_steps_done"]
    backend.reseed(hashlib.sha256(f"{backend.setup.seed}/{num_steps}".encode()).digest())
    return record, [
        f"the checkpoint was made with {_shape(made_with)}, this run has {_shape(now)}: it continues "
        "with the same numbers up to rounding, and with random numbers seeded from the seed and the step"
    ]


def check(folder: Path, parts: Parts) -> dict[str, Any]:
    """Check that a checkpoint is intact and fits `parts`; returns its commit record. *Collective*.

    Each rank verifies a share of the files.

    Raises:
        CheckpointError: as for `restore`; raised on every rank.
    """
    record = committed.read(folder)
    found: list[list[str]] = [[]] * dist.get_world_size()
    share = committed.flaws(folder, record, rank=dist.get_rank(), num_ranks=len(found))
    dist.all_gather_object(found, share)
    committed.refuse_flawed(folder, [flaw for of_rank in found for flaw in of_rank])
    committed.refuse_other_format(folder, record)
    if record["parts"].keys() != parts.keys():
        held, trained = (", ".join(sorted(names)) for names in (record["parts"], parts))
        raise CheckpointError(
            f"{folder} holds {held}, this run trains {trained}",
            fix="use algorithm.estimator as it was",
        )
    for part, (model, _) in parts.items():
        made_with, now = committed.layout(record, part), model.trained
        if parameters(made_with.spec) != parameters(now.spec):
            raise CheckpointError(
                f"{folder} holds a {part} with other parameters than this run's",
                fix="use model.path as it was",
            )
        if _adapters(made_with) != _adapters(now):
            raise CheckpointError(
                f"{folder} holds a {part} with {_adapters(made_with)}, this run trains {_adapters(now)}",
                fix="use actor.lora as it was",
            )
    return record


def _adapters(layout: Layout) -> str:
    if not isinstance(layout, AdapterLayout):
        return "all weights"
    return f"adapters of rank {layout.rank}, alpha {layout.alpha:g}, on {', '.join(layout.targets)}"


def _shape(layout: TrainerLayout | AdapterLayout) -> str:
    return (layout.base if isinstance(layout, AdapterLayout) else layout).shape


def _snapshot(backend: Backend, model: Model, optimizer: Optimizer) -> Iterator[Kept]:
    """What this rank writes, copied to host memory. One rank writes what several ranks hold a copy of."""
    trained, untrained = backend.written(model.trained)
    for names, found in ((trained, _trained(model, optimizer)), (untrained, _untrained(model))):
        for kept in found:
            if kept.name in names:
                copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.tensors.items()}
                yield replace(kept, tensors=copies)


def _wanted(rank: int, model: Model, optimizer: Optimizer) -> Iterator[Wanted]:
    """The flat ranges that this rank reads, with the tensors that they fill."""
    shards = model.trained.shards(rank)
    for kept in (*_trained(model, optimizer), *_untrained(model)):
        if kept.name not in shards:  # the base model of adapters is frozen and in no checkpoint
            continue
        yield Wanted(kept.flat_range(shards[kept.name]), {n: t.detach() for n, t in kept.tensors.items()})


def _trained(model: Model, optimizer: Optimizer) -> Iterator[Kept]:
    """The flat ranges of the optimizer state, as live tensors."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, start, tensors in optimizer.flat_ranges():
        yield Kept(names[id(parameter)], start, tensors)


def _untrained(model: Model) -> Iterator[Kept]:
    """What this rank has of parameters without optimizer state, as live tensors. The base model of adapters
    is in no checkpoint."""
    kept, held = model.trained.shards(model.rank), model.tensors()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name in kept:
            yield Kept(name, 0, {WEIGHTS: held[name].detach().flatten()})


_RANDOM = "random/"
"""Prefix of the names of random-number states in a rank's first file."""
