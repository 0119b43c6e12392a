"""`hybridrl replay`: computes the policy update of a step bundle again, or compares two bundles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hybridrl.batch import Minibatch, RankBatch
from hybridrl.config.load import load
from hybridrl.config.run_shape import RunShape
from hybridrl.config.training import TrainParallel
from hybridrl.data.packing import partition_rows
from hybridrl.errors import AbsentModelError
from hybridrl.launch.model_folders import in_folders
from hybridrl.launch.shape import Placement
from hybridrl.launch.start_trainers import Trainers
from hybridrl.replay import differences
from hybridrl.replay.differences import Compared
from hybridrl.replay.ranks import take_again
from hybridrl.trainer import bundles
from hybridrl.trainer.setup import PolicySetup, make_layout
from hybridrl.verify.layouts import name_of, parse
from hybridrl.verify.ranks import RankGroup
from hybridrl.wording import counted

TOLERANCE = 2e-6
"""Largest difference on another parallel layout that counts as rounding."""


@dataclass(frozen=True, slots=True)
class Replayed:
    described: str
    """What was computed or compared, in words."""

    exact: bool
    """Whether bits were compared."""

    compared: Compared


def replay(folder: Path, *, layout: str = "", tolerance: float | None = None) -> Replayed:
    """Compute the policy update of a bundle again, on CPUs of this machine, and compare.

    Args:
        layout: parallel layout as `hybridrl verify` names it; "": that of the run.
        tolerance: largest difference that counts as none. None: 0 on the layout of the run, else TOLERANCE.

    Raises:
        CheckpointError: the folder holds no undamaged bundle.
        ModelError, LayoutError: the model of the run is not here, or does not divide over such ranks.
        WorkerError: a rank died.
    """
    bundle = bundles.read(folder)
    setup, timeout_s = setup_of(folder)
    other = parse(layout) if layout else setup.parallel
    moved = other != setup.parallel
    batch = _on(other, bundle.batch, setup) if moved else bundle.batch
    setup = replace(setup, parallel=other, actor=setup.actor.model_copy(update={"parallel": other}))
    make_layout(setup)
    found, columns = bundle.found, bundle.found.columns
    with RankGroup(other.num_ranks, timeout_s, setup.actor.backend) as group:
        again = group(
            take_again,
            setup,
            folder,
            batch,
            {name: columns[name] for name in setup.remote_columns},
            columns if bundle.columns_are_given else {},
            range(bundle.first, bundle.first + len(found.steps)),
        )
    tolerance = (TOLERANCE if moved else 0.0) if tolerance is None else tolerance
    compared = differences.of_results(
        again, found, trained(bundle.batch), tolerance=tolerance, same_ranks=not moved
    )
    steps = counted(len(found.steps), "optimizer step")
    where = name_of(other) or counted(1, "rank")
    return Replayed(f"{steps} of step {bundle.step} on {where}", not tolerance, compared)


def against(folder: Path, other: Path, *, tolerance: float | None = None) -> Replayed:
    """Compare two bundles, first what went into the update, then what came of it; nothing is computed.

    Args:
        tolerance: largest difference of results that counts as none; None: 0.

    Raises:
        CheckpointError: one of the folders holds no undamaged bundle.
    """
    here, there = bundles.read(folder), bundles.read(other)
    inputs = differences.of_inputs(here, there)
    same_ranks = len(here.found.weights) == len(there.found.weights)
    results = differences.of_results(
        here.found, there.found, trained(there.batch), tolerance=tolerance or 0.0, same_ranks=same_ranks
    )
    both = Compared(
        inputs.tensors + results.tensors,
        inputs.numbers + results.numbers,
        (*inputs.different, *results.different),
    )
    return Replayed(f"step {here.step} of {folder} with step {there.step} of {other}", not tolerance, both)


def trained(batch: RankBatch) -> np.ndarray:
    """Trained tokens of each trajectory, as trainer ranks count them; int64 [N]."""
    blocks = batch.with_blocks(batch.blocks).blocks
    masks = [blocks[b].loss_mask_T[blocks[b].row(r)] for b, r in zip(batch.block_N, batch.row_N, strict=True)]
    return np.array([mask.sum() for mask in masks], np.int64)


def setup_of(folder: Path) -> tuple[PolicySetup, float]:
    """Setup of the actor's rank 0 on a CPU, and the deadline of one update in seconds."""
    loaded = load(folder / bundles.CONFIG)
    cfg = in_folders(loaded).config
    if not Path(cfg.model.path).is_dir():
        raise AbsentModelError(
            f"model.path = {cfg.model.path} is not here",
            where=str(folder / bundles.CONFIG),
            fix="run hybridrl replay in the folder where the run was launched",
        )
    shape = RunShape.of(cfg)
    setup = Trainers(
        cfg,
        shape,
        Placement.of_config(cfg),
        lambda _: "",
    ).actor()[0]
    return replace(setup, device=None, async_save=False), cfg.cluster.step_timeout_s


def _on(parallel: TrainParallel, batch: RankBatch, setup: PolicySetup) -> RankBatch:
    """The batch with its minibatches partitioned over another number of data-parallel ranks."""
    if parallel.dp == setup.parallel.dp:
        return batch
    length_N = np.array(
        [np.diff(batch.blocks[b].start_N)[r] for b, r in zip(batch.block_N, batch.row_N, strict=True)]
    )

    def partitioned(minibatch: Minibatch) -> Minibatch:
        members = np.array(sorted(_members(minibatch)), np.int64)
        limit = max(setup.actor.microbatch_tokens, int(length_N[members].max()))
        rows = partition_rows(members, length_N[members], num_ranks=parallel.dp or 1, microbatch_tokens=limit)
        return replace(minibatch, rows=rows)

    return replace(batch, minibatches=tuple(map(partitioned, batch.minibatches)))


def _members(minibatch: Minibatch) -> Sequence[int]:
    return [n for rank in minibatch.rows for rows in rank for n in rows]


def lines(replayed: Replayed, most: int = 8) -> list[str]:
    """What a person reads about a comparison.

    Args:
        most: differences that are named one by one.
    """
    found = replayed.compared
    what = f"{counted(found.numbers, 'number')} and {counted(found.tensors, 'tensor')}"
    if not found.different:
        return [f"{replayed.described}: {what} are the same{', bit for bit' if replayed.exact else ''}"]
    first, *others = map(str, found.different)
    left = [f"and {counted(len(others) - most, 'further one')}"] if len(others) > most else []
    return [
        f"{replayed.described}: {len(found.different)} of {what} differ",
        f"first: {first}",
        *others[:most],
        *left,
    ]
