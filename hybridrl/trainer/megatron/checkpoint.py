"""Checkpoints of model, optimizer, schedule and random state; ranks that are cut in any way can read them.

Each rank writes the stretches of parameters and moments that its optimizer keeps, in fp32, into FOLDER.tmp
(reshard/rank_files.py), and reads its file back. Rank 0 waits for the files of all and commits
(trainer/committed.py).
Who waits for whom: rank 0 makes the folder, all wait. From there on nobody waits but rank 0's writer, which
may be a thread beside the training.
"""

import hashlib
import importlib.metadata
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed
from torch import Tensor

from hybridrl.errors import CheckpointError, DeadlineError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models.spec import count, parameters, without_vocabulary
from hybridrl.reshard import rank_files
from hybridrl.reshard.rank_files import Kept
from hybridrl.reshard.stretches import Wanted
from hybridrl.trainer import committed
from hybridrl.trainer.megatron.background import Background
from hybridrl.trainer.megatron.model import Stage, named_parameters, policy_model
from hybridrl.trainer.megatron.optimizer import WEIGHTS, Optimizer

Trained = tuple[Stage, Optimizer]
Parts = Mapping[str, Trained]
"""Everything that is trained, by name."""


class Saver:
    """Writes checkpoints, one at a time. Every method but `raise_failure` is *collective*."""

    def __init__(self, layout: MegatronLayout, *, timeout_s: float, background: bool = False) -> None:
        """
        Args:
            layout: of the policy on these ranks.
            timeout_s: rank 0 waits this long for the files of the others.
            background: `save` copies to host memory and returns; a thread writes.
        """
        self._layout, self._timeout_s, self._in_background = layout, timeout_s, background
        self._background = Background()

    def save(
        self,
        folder: Path,
        parts: Parts,
        facts: Mapping[str, Any],
        then: Callable[[], None] | None = None,
    ) -> None:
        """Write a new checkpoint; waits for the one before.

        Args:
            facts: what the commit record is to hold besides; JSON.
            then: on rank 0, called when it is committed.

        Raises:
            CheckpointError: the folder exists; nothing was written.
            CheckpointError, ResourceError, DeadlineError: the one before could not be written.
        """
        self.finish()
        if folder.exists():
            raise CheckpointError(
                f"{folder} exists already", fix="checkpoints are never overwritten: choose another folder"
            )
        unfinished = folder.with_name(folder.name + ".tmp")
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it saved
            unfinished.mkdir(parents=True)
        dist.barrier()
        job = self._writer(unfinished, folder, parts, facts, then)
        self._background.start(job)
        if not self._in_background:
            self.finish()

    def finish(self) -> None:
        """Returns when the last checkpoint is there.

        Raises:
            CheckpointError, ResourceError, DeadlineError: it could not be written.
        """
        self._background.finish()
        dist.barrier()

    def raise_failure(self) -> None:
        """
        Raises:
            CheckpointError, ResourceError, DeadlineError: the writer has failed since the last call. Waits
                for nothing.
        """
        self._background.raise_failure()

    def _writer(
        self,
        unfinished: Path,
        folder: Path,
        parts: Parts,
        facts: Mapping[str, Any],
        then: Callable[[], None] | None,
    ) -> Callable[[], None]:
        """What writes the present state, whatever becomes of it meanwhile."""
        rank = dist.get_rank()
        snapshots = {part: list(_snapshot(self._of(part, parts), rank, *parts[part])) for part in parts}
        beside = dict(_random_state())
        record = {**facts, "parts": self._record(parts), "versions": _versions()}
        collect = partial(self._collect, unfinished, list(parts))

        def write() -> None:
            for index, (part, kept) in enumerate(snapshots.items()):
                rank_files.write(unfinished, part, rank, kept, beside if index == 0 else {})
            if rank == 0:
                committed.commit(unfinished, folder, record, collect())
                if then is not None:
                    then()

        return write

    def _collect(self, unfinished: Path, parts: list[str]) -> dict[str, int]:
        """The files of all ranks, with their checksums, when all are there."""
        deadline, found = time.monotonic() + self._timeout_s, {}
        for part in parts:
            while (files := rank_files.collect(unfinished, part, self._layout.world_size)) is None:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"ranks did not write their files of {part} in {self._timeout_s:g} s",
                        where=str(unfinished),
                        fix="raise cluster.step_timeout_s if the disk is that slow",
                    )
                time.sleep(_POLL_S)
            found |= files
        return found

    def _record(self, parts: Parts) -> dict[str, Any]:
        layouts = {part: self._of(part, parts) for part in parts}
        return {
            part: {
                "layout": asdict(layouts[part]),
                "parameters": count(layouts[part].spec),
                "dtype": "float32",
                "quantities": optimizer.quantities,
                "progress": optimizer.progress,
            }
            for part, (_, optimizer) in parts.items()
        }

    def _of(self, part: str, parts: Parts) -> MegatronLayout:
        return layout_of(parts[part][0], self._layout)


_POLL_S = 0.02


def layout_of(stage: Stage, layout: MegatronLayout) -> MegatronLayout:
    """Of what is trained of a part that is cut as the policy is: its adapters, or all of it, which may have a
    value head in place of its output layer."""
    if (adapters := policy_model(stage).adapters) is not None:
        return adapters
    if layout.spec.head == "value" or not policy_model(stage).has_value_head:
        return layout
    return replace(layout, spec=without_vocabulary(layout.spec, head="value"))


def restore(
    folder: Path, layout: MegatronLayout, parts: Parts, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Load a checkpoint into models and optimizers, which may be cut in another way than when it was made.
    *Collective*.

    Args:
        layout: of the policy on these ranks.
        seed: of the run; where ranks are cut in another way, random numbers begin anew from it and the step.

    Returns:
        Its commit record, and what a person is to be told about the difference.

    Raises:
        CheckpointError: it is not whole, damaged, of another model or format, or something else was trained;
            nothing was changed.
    """
    record = check(folder, layout, parts)
    rank = dist.get_rank()
    for part, (stage, optimizer) in parts.items():
        wanted = list(_wanted(layout_of(stage, layout), rank, stage, optimizer))
        for want in wanted:
            for tensor in want.tensors.values():
                tensor.zero_()  # what no file has is padding
        rank_files.fill(folder, part, committed.layout(record, part), wanted)
        optimizer.resume(record["parts"][part]["progress"])
    first = next(iter(parts))
    made_with, now = committed.layout(record, first), layout_of(parts[first][0], layout)
    if made_with == now:
        _set_random_state(rank_files.read_beside(folder, first, rank, _RANDOM))
        return record, []
    _reseed(seed, record["parts"][first]["progress"])
    return record, [
        f"the checkpoint was made with {_shape(made_with)}, this run has {_shape(now)}: it goes on with the "
        "same numbers up to rounding, and with random numbers from the seed and the step"
    ]


def check(folder: Path, layout: MegatronLayout, parts: Parts) -> dict[str, Any]:
    """The commit record of a checkpoint that fits. Ranks share the reading of its files. *Collective*.

    Raises:
        CheckpointError: as `restore`; on every rank.
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
    for part, (stage, _) in parts.items():
        made_with, now = committed.layout(record, part), layout_of(stage, layout)
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


def _adapters(layout: MegatronLayout) -> str:
    if not isinstance(layout, AdapterLayout):
        return "all weights"
    targets = ", ".join(layout.adapter_targets)
    return f"adapters of rank {layout.adapter_rank}, alpha {layout.adapter_alpha:g}, on {targets}"


def _snapshot(layout: MegatronLayout, rank: int, stage: Stage, optimizer: Optimizer) -> Iterator[Kept]:
    """What this rank writes, copied to host memory. Of what several ranks hold alike, one writes it."""
    trained, untrained = _written(layout, rank)
    for names, found in ((trained, _trained(stage, optimizer)), (untrained, _untrained(stage))):
        for kept in found:
            if kept.name in names:
                copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in kept.tensors.items()}
                yield replace(kept, tensors=copies)


def _wanted(layout: MegatronLayout, rank: int, stage: Stage, optimizer: Optimizer) -> Iterator[Wanted]:
    """What this rank reads."""
    shards = layout.shards(rank)
    for kept in (*_trained(stage, optimizer), *_untrained(stage)):
        if kept.name not in shards:  # frozen under adapters
            continue
        yield Wanted(kept.stretch(shards[kept.name]), {n: t.detach() for n, t in kept.tensors.items()})


def _trained(stage: Stage, optimizer: Optimizer) -> Iterator[Kept]:
    """The stretches of the optimizer. Live."""
    names = {id(parameter): name for name, parameter in named_parameters(stage)}
    for parameter, start, tensors in optimizer.stretches():
        yield Kept(names[id(parameter)], start, tensors)


def _untrained(stage: Stage) -> Iterator[Kept]:
    """Whole parameters that have no optimizer state. Live."""
    for name, parameter in named_parameters(stage):
        if not parameter.requires_grad:
            yield Kept(name, 0, {WEIGHTS: parameter.detach().flatten()})


def _written(layout: MegatronLayout, rank: int) -> tuple[set[str], set[str]]:
    """Tensors of which this rank writes its stretch, if they are trained and if they are not.

    Tensor-parallel ranks that hold the same of a tensor keep the same stretches: the first of them writes.
    Data-parallel ranks share in a tensor that is trained, and so do all that have the same expert; of others
    there are whole copies.
    """
    first: dict[tuple[object, ...], str] = {}
    trained, untrained = set(), set()
    for held in layout.holdings:
        tied_copy = first.setdefault((held.param, held.rows, held.cols), held.tensor) != held.tensor
        if rank not in held.ranks or tied_copy:
            continue
        names = {name for layer in held.layers for name, _ in held.shards(layer)}
        on_every_rank = held.ranks.step == 1 and not held.expert_rows
        if not on_every_rank or rank % layout.tp == 0:
            trained |= names
        if rank == held.ranks.start:
            untrained |= names
    return trained, untrained


_RANDOM = "random/"


def _random_state() -> Iterator[tuple[str, Tensor]]:
    """Every rank has its own."""
    yield f"{_RANDOM}torch", torch.get_rng_state()
    for name, state in get_cuda_rng_tracker().get_states().items():
        yield f"{_RANDOM}tracker/{name}", state.to("cpu", copy=True)


def _set_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    tracked = {name.removeprefix("tracker/"): s for name, s in states.items() if name != "torch"}
    get_cuda_rng_tracker().set_states(tracked)


def _reseed(seed: int, progress: Mapping[str, Any]) -> None:
    digest = hashlib.sha256(f"{seed}/{progress['num_steps_done']}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4]))
    model_parallel_cuda_manual_seed(int.from_bytes(digest[4:7]), force_reset_rng=True)


def _shape(layout: MegatronLayout) -> str:
    sizes = {axis: getattr(layout, axis) for axis in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")}
    return " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1 or axis in ("tp", "pp", "dp"))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hybridrl", "torch", "megatron-core")}
